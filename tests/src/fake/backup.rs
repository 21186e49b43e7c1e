//! The messages of a whole base backup, as a server of each version sends them.
//!
//! Written from the protocol's documentation ("Streaming Replication Protocol", BASE_BACKUP) and
//! src/backend/backup/basebackup_copy.c, independently of the decoder under test.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::member::Member;
use super::message::{command_complete, copy_data, copy_done, copy_out, data_row, ready, row_description};
use super::script::Reply;

/// From this version on, all archives come in one copy stream whose messages have types.
const TYPED_MESSAGES: u32 = 15;
/// From this version on, a manifest names the system and is of version 2.
const MANIFEST_2: u32 = 17;
/// What the server puts into one message: `SINK_BUFFER_LENGTH` of src/backend/backup/basebackup.c.
const A_MESSAGE: usize = 32 << 10;

/// The manifest of a fake backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Manifest {
    /// One that fits the files.
    #[default]
    Honest,
    /// These bytes.
    Bytes(Vec<u8>),
    /// None is sent.
    Absent,
}

/// A tablespace of a fake backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeTablespace {
    /// Its number as the server names it.
    pub oid: String,
    /// Where it lies on the server.
    pub location: String,
    /// What is in it.
    pub members: Vec<Member>,
}

/// A base backup that a fake server sends.
#[derive(Clone, Debug)]
pub struct FakeBackup {
    /// The server's major version.
    pub major: u32,
    /// Members of the base archive.
    pub members: Vec<Member>,
    /// Tablespaces; they are sent first.
    pub tablespaces: Vec<FakeTablespace>,
    /// The manifest.
    pub manifest: Manifest,
    /// Start position and timeline.
    pub start: (String, String),
    /// End position and timeline.
    pub end: (String, String),
}

impl FakeBackup {
    /// A small backup without a flaw: the files that every client looks for, one of several messages, an empty one.
    #[must_use]
    pub fn honest(major: u32) -> Self {
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
                     CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
                     START TIME: 2026-01-01 00:00:00 UTC\nLABEL: fake\nSTART TIMELINE: 1\n";
        let long: Vec<u8> = (0..100_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        Self {
            major,
            members: vec![
                Member::file("backup_label", label),
                Member::directory("global"),
                Member::file("PG_VERSION", format!("{major}\n")),
                Member::file("postgresql.conf", "# fake\n"),
                Member::directory("base"),
                Member::directory("base/1"),
                Member::file("base/1/1259", long),
                Member::file("base/1/empty", ""),
                Member::directory("pg_wal"),
                Member::directory("./pg_wal/archive_status"),
                Member::directory("pg_tblspc"),
                Member::file("global/pg_control", vec![0x5a; 8192]),
            ],
            tablespaces: Vec::new(),
            manifest: Manifest::Honest,
            start: ("0/2000028".into(), "1".into()),
            end: ("0/2000100".into(), "1".into()),
        }
    }

    /// Adds a member before the last one, which is pg_control.
    #[must_use]
    pub fn with(mut self, member: Member) -> Self {
        let place = self.members.len().saturating_sub(1);
        self.members.insert(place, member);
        self
    }

    /// Adds a tablespace and its link.
    #[must_use]
    pub fn with_tablespace(mut self, oid: &str, location: &str, members: Vec<Member>) -> Self {
        self.tablespaces.push(FakeTablespace { oid: oid.to_owned(), location: location.to_owned(), members });
        self.with(Member::link(format!("pg_tblspc/{oid}"), location))
    }

    /// Replaces the manifest.
    #[must_use]
    pub fn with_manifest(mut self, manifest: Manifest) -> Self {
        self.manifest = manifest;
        self
    }

    /// Every message of the answer to BASE_BACKUP, the last one being ready-for-query.
    #[must_use]
    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.messages_with_base(&self.base_archive())
    }

    /// The base archive in the pieces that the server sends it in.
    #[must_use]
    pub fn base_archive(&self) -> Vec<Vec<u8>> {
        let end = (self.major >= TYPED_MESSAGES).then(|| vec![0; 1024]);
        archive(&self.members).chain(end).collect()
    }

    /// As [`messages`](Self::messages), with other bytes for the base archive; an honest manifest still fits the
    /// members.
    #[must_use]
    pub fn messages_with_base(&self, base: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut messages = position(&self.start);
        messages.push(row_description(&["spcoid", "spclocation", "size"]));
        for tablespace in &self.tablespaces {
            messages.push(data_row(&[Some(&tablespace.oid), Some(&tablespace.location), Some("100")]));
        }
        messages.extend([data_row(&[None, None, Some("1000")]), command_complete("SELECT")]);
        let end = (self.major >= TYPED_MESSAGES).then(|| vec![0; 1024]);
        let archives = self.tablespaces.iter().map(|space| {
            let blocks: Vec<_> = archive(&space.members).chain(end.clone()).collect();
            (space.oid.as_str(), space.location.as_str(), blocks)
        });
        let archives: Vec<_> = archives.chain([("base", "", base.to_vec())]).collect();
        if self.major >= TYPED_MESSAGES {
            messages.push(copy_out());
            for (name, location, blocks) in archives {
                messages.push(copy_data(format!("n{name}.tar\0{location}\0").as_bytes()));
                messages.extend(blocks.iter().map(|block| copy_data(&[b"d", &block[..]].concat())));
                messages.push(copy_data(&[&b"p"[..], &1000_u64.to_be_bytes()].concat()));
            }
            if let Some(manifest) = self.manifest_bytes() {
                messages.push(copy_data(b"m"));
                messages.extend(manifest.chunks(A_MESSAGE).map(|piece| copy_data(&[b"d", piece].concat())));
            }
            messages.push(copy_done());
        } else {
            for (_, _, blocks) in archives {
                messages.push(copy_out());
                messages.extend(blocks.iter().map(|block| copy_data(block)));
                messages.push(copy_done());
            }
            if let Some(manifest) = self.manifest_bytes() {
                messages.push(copy_out());
                messages.extend(manifest.chunks(A_MESSAGE).map(copy_data));
                messages.push(copy_done());
            }
        }
        messages.extend(position(&self.end));
        messages.extend([command_complete("BASE_BACKUP"), ready()]);
        messages
    }

    /// The answer to BASE_BACKUP.
    #[must_use]
    pub fn reply(&self) -> Reply {
        Reply::messages(self.messages())
    }

    /// The bytes of the manifest, where there is one.
    #[must_use]
    pub fn manifest_bytes(&self) -> Option<Vec<u8>> {
        match &self.manifest {
            Manifest::Honest => Some(self.honest_manifest()),
            Manifest::Bytes(bytes) => Some(bytes.clone()),
            Manifest::Absent => None,
        }
    }

    fn honest_manifest(&self) -> Vec<u8> {
        let in_tablespaces = self.tablespaces.iter().flat_map(|space| {
            space.members.iter().map(|member| (format!("pg_tblspc/{}/{}", space.oid, member.path()), member))
        });
        let in_base = self.members.iter().map(|member| (member.path(), member));
        let files: Vec<String> = in_tablespaces
            .chain(in_base)
            .filter(|(path, member)| member.is_file() && !path.starts_with("pg_wal/"))
            .map(|(path, member)| {
                // The checksum's bytes as they lie in the memory of a little-endian server.
                let checksum = crc32c::crc32c(&member.content).swap_bytes();
                format!(
                    "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2023-11-14 22:13:20 GMT\", \
                     \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum:08x}\" }}",
                    member.content.len()
                )
            })
            .collect();
        let (version, system) = if self.major >= MANIFEST_2 {
            (2, "\"System-Identifier\": 7300000000000000001,\n")
        } else {
            (1, "")
        };
        let mut text =
            format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n{system}\"Files\": [\n");
        text.push_str(&files.join(",\n"));
        let (start, end) = (&self.start.0, &self.end.0);
        let _ = write!(
            text,
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}\n],\n",
            self.start.1
        );
        sealed(&text)
    }
}

/// Ends a manifest with the line that holds its own SHA-256. `text` goes up to the list that stands before that line.
#[must_use]
pub fn sealed(text: &str) -> Vec<u8> {
    let mut hasher = Sha256::new();
    hasher.update(text);
    format!("{text}{}", sealed_by(hasher)).into_bytes()
}

/// The line with the checksum of what was hashed.
pub(super) fn sealed_by(hasher: Sha256) -> String {
    let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"Manifest-Checksum\": \"{digest}\"}}\n")
}

fn position((lsn, timeline): &(String, String)) -> Vec<Vec<u8>> {
    vec![
        row_description(&["recptr", "tli"]),
        data_row(&[Some(lsn), Some(timeline)]),
        command_complete("SELECT"),
    ]
}

/// Header, content and padding in messages of their own, as the server sends them.
fn archive(members: &[Member]) -> impl Iterator<Item = Vec<u8>> {
    members.iter().flat_map(|member| {
        let content = member.content.chunks(A_MESSAGE).map(<[u8]>::to_vec);
        let padding = Some(member.padding()).filter(|padding| !padding.is_empty());
        [member.header.clone()].into_iter().chain(content).chain(padding)
    })
}
