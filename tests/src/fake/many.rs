//! A backup of any number of files, made while it is sent: nothing of it is kept.

use std::io::{self, BufWriter, Write};

use sha2::{Digest, Sha256};

use super::backup::{FakeBackup, sealed_by};
use super::member::Member;
use super::message::copy_data;
use super::script::{Reply, Step};

/// Files of a folder.
const A_FOLDER: u64 = 10_000;
/// One file in so many has bytes; the others are empty.
const WITH_BYTES: u64 = 8;
/// What the server puts into one message.
const A_MESSAGE: usize = 32 << 10;

/// Files beside those of [`FakeBackup::honest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManyFiles {
    /// How many.
    pub count: u64,
}

/// A part of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The files, as messages of an archive.
    Archive,
    /// The manifest's messages.
    Manifest,
}

impl ManyFiles {
    /// The answer of a server of this version to BASE_BACKUP. From 15 on.
    ///
    /// # Panics
    /// Where an honest backup has no place for them.
    #[must_use]
    pub fn reply(self, major: u32) -> Reply {
        let messages = FakeBackup::honest(major).messages();
        let control =
            copy_data(&[b"d", &Member::file("global/pg_control", vec![0x5a; 8192]).header[..]].concat());
        let place = messages.iter().position(|message| *message == control).expect("the last member");
        let manifest = copy_data(b"m");
        let begin = messages.iter().position(|message| *message == manifest).expect("a manifest");
        let rest = messages[begin + 1..].iter().position(|message| message[0] != b'd').expect("an end");
        let mut reply = Reply::messages(messages[..place].iter().cloned());
        reply = reply.then(Step::Many(self, Part::Archive));
        for message in &messages[place..=begin] {
            reply = reply.then(Step::Send(message.clone()));
        }
        reply = reply.then(Step::Many(self, Part::Manifest));
        messages[begin + 1 + rest..]
            .iter()
            .fold(reply, |reply, message| reply.then(Step::Send(message.clone())))
    }

    fn content(number: u64) -> Vec<u8> {
        if number.is_multiple_of(WITH_BYTES) { format!("file {number}\n").into_bytes() } else { Vec::new() }
    }

    fn folder(number: u64) -> u64 {
        100_000 + number / A_FOLDER
    }

    fn path(number: u64) -> String {
        format!("base/{}/{}", Self::folder(number), 1_000_000_000 + number)
    }

    /// Sends a part.
    ///
    /// # Errors
    /// Where the other end is gone.
    pub(super) fn send(self, part: Part, major: u32, to: impl Write) -> io::Result<()> {
        let mut to = BufWriter::with_capacity(1 << 20, to);
        match part {
            Part::Archive => {
                for number in 0..self.count {
                    if number.is_multiple_of(A_FOLDER) {
                        let folder = Member::directory(format!("base/{}", Self::folder(number)));
                        to.write_all(&copy_data(&[b"d", &folder.header[..]].concat()))?;
                    }
                    let member = Member::file(Self::path(number), Self::content(number));
                    let padding = member.padding();
                    to.write_all(&copy_data(&[b"d", &member.header[..]].concat()))?;
                    if !padding.is_empty() {
                        to.write_all(&copy_data(&[b"d", &member.content[..]].concat()))?;
                        to.write_all(&copy_data(&[b"d", &padding[..]].concat()))?;
                    }
                }
            }
            Part::Manifest => {
                let honest = FakeBackup::honest(major);
                let whole = String::from_utf8(honest.manifest_bytes().expect("a manifest")).expect("text");
                // Before the last file, which is pg_control, and up to the line with the checksum.
                let control = whole.find("{ \"Path\": \"global/pg_control\"").expect("the last file");
                let end = whole.find("\"Manifest-Checksum\"").expect("the checksum");
                let mut hasher = Sha256::new();
                let mut pieces = Vec::new();
                let mut send = |text: &str, to: &mut BufWriter<_>, last: bool| -> io::Result<()> {
                    hasher.update(text);
                    pieces.extend_from_slice(text.as_bytes());
                    while pieces.len() >= A_MESSAGE || (last && !pieces.is_empty()) {
                        let rest = pieces.split_off(A_MESSAGE.min(pieces.len()));
                        to.write_all(&copy_data(&[b"d", &pieces[..]].concat()))?;
                        pieces = rest;
                    }
                    Ok(())
                };
                send(&whole[..control], &mut to, false)?;
                for number in 0..self.count {
                    let content = Self::content(number);
                    let line = format!(
                        "{{ \"Path\": \"{}\", \"Size\": {}, \"Last-Modified\": \"2023-11-14 22:13:20 GMT\", \
                         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{:08x}\" }},\n",
                        Self::path(number),
                        content.len(),
                        crc32c::crc32c(&content).swap_bytes()
                    );
                    send(&line, &mut to, false)?;
                }
                send(&whole[control..end], &mut to, true)?;
                let last = sealed_by(hasher);
                to.write_all(&copy_data(&[b"d", last.as_bytes()].concat()))?;
            }
        }
        to.flush()
    }
}
