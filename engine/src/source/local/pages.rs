//! Page checksums of what was read from under a running server.
//!
//! A page that does not match may have been read while it was written, so it is read again before it counts, several
//! times: by then its write has ended, and it is whole, or its LSN says that recovery will write it anew. PostgreSQL
//! itself reads once more only.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use pgstrata_protocol::page::{PAGE_SIZE, PageHeader, PageState, check_page, page_checksum};
use pgstrata_protocol::{BlockNumber, Lsn};

use crate::buffer::PageBuffer;
use crate::pipeline::Findings;
use crate::ring::DiskFile;
use crate::verify::BadPage;

/// Pauses between the reads of a page that does not match.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(100),
];
/// With more bad pages than this, those that follow are read again without pauses: they are no coincidence.
const PATIENT: u64 = 64;

/// Checks pages of one reader's files.
pub(super) struct PageGuard {
    pub(super) backup_start: Lsn,
    pub(super) findings: std::sync::Arc<Findings>,
    /// For pages that are read again.
    pub(super) scratch: PageBuffer,
}

impl PageGuard {
    /// Checks the whole pages in `bytes`, which were read from `offset` of a file whose first page has the number
    /// `first`. Those that another read finds right are replaced by it. A page that is gone by then becomes zeros,
    /// as in a file that was cut: recovery cuts it again.
    pub(super) fn check(
        &mut self,
        file: &DiskFile,
        path: &[u8],
        first: BlockNumber,
        offset: u64,
        bytes: &mut [u8],
    ) -> std::io::Result<()> {
        for (at, page) in bytes.chunks_exact_mut(PAGE_SIZE).enumerate() {
            let place = offset + (at * PAGE_SIZE) as u64;
            let number = u32::try_from(place / PAGE_SIZE as u64).unwrap_or(u32::MAX);
            let block = BlockNumber(first.0.wrapping_add(number));
            let page: &mut [u8; PAGE_SIZE] = page.try_into().expect("a whole page");
            let Some(mut bad) = judge(page, block, self.backup_start) else { continue };
            let tries = if self.findings.count() < PATIENT { &PAUSES[..] } else { &PAUSES[..1] };
            let mut mended = false;
            for pause in tries {
                thread::sleep(*pause);
                let found = self.read_again(file, place)?;
                *page = found.unwrap_or([0; PAGE_SIZE]);
                match judge(page, block, self.backup_start) {
                    Some(still) => bad = still,
                    None => {
                        mended = true;
                        break;
                    }
                }
            }
            if !mended {
                self.findings.page(Path::new(std::ffi::OsStr::from_bytes(path)), bad);
            }
        }
        Ok(())
    }

    /// The page at `place`, none where the file has none there any more.
    fn read_again(&mut self, file: &DiskFile, place: u64) -> std::io::Result<Option<[u8; PAGE_SIZE]>> {
        let alignment = file.alignment() as u64;
        let begin = place - place % alignment;
        let skipped = usize::try_from(place - begin).unwrap_or(0);
        let length = (skipped + PAGE_SIZE).next_multiple_of(file.alignment());
        let buffer = &mut self.scratch.as_mut_slice()[..length];
        let mut read = 0;
        while read < skipped + PAGE_SIZE {
            let from = begin + read as u64;
            match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut buffer[read..], from))? {
                0 => break,
                more => read += more,
            }
            // Past the page cache a file's end is the only place for less, and nothing behind it can be asked for.
            if read % file.alignment() != 0 {
                break;
            }
        }
        match buffer[..read].get(skipped..skipped + PAGE_SIZE) {
            Some(page) => Ok(page.try_into().ok()),
            // A part of a page is no cut file, which ends between pages: a read that failed half-way shows as this.
            None if read <= skipped => Ok(None),
            None => Err(std::io::Error::other(format!(
                "found {} bytes of the page at {place}, expected {PAGE_SIZE}",
                read - skipped
            ))),
        }
    }
}

/// What is wrong with a page, if something is. One that says it is new has to be empty, as when the server reads it
/// (`PageIsVerified`, `bufpage.c`).
fn judge(page: &[u8; PAGE_SIZE], block: BlockNumber, backup_start: Lsn) -> Option<BadPage> {
    match check_page(page, block, backup_start) {
        Ok(PageState::New) if page.iter().any(|byte| *byte != 0) => Some(BadPage {
            block,
            found: PageHeader::parse(page).checksum,
            expected: page_checksum(page, block),
        }),
        Ok(_) => None,
        Err(mismatch) => Some(BadPage { block, found: mismatch.found, expected: mismatch.expected }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::BufferPool;
    use crate::ring::IoMode;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    const START: Lsn = Lsn(1000);

    fn page(block: u32) -> [u8; PAGE_SIZE] {
        let mut page = [0u8; PAGE_SIZE];
        page[14..16].copy_from_slice(&8000u16.to_le_bytes()); // pd_upper: not a new page
        page[100..104].copy_from_slice(&block.to_le_bytes());
        let checksum = page_checksum(&page, BlockNumber(block));
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    fn guard(pool: &BufferPool) -> PageGuard {
        let scratch = pool.take().expect("open");
        PageGuard { backup_start: START, findings: Arc::new(Findings::default()), scratch }
    }

    #[test]
    fn torn_pages_are_read_again_and_damaged_ones_told() {
        let folder = tempfile::TempDir::new().expect("folder");
        let on_disk: Vec<u8> = (0..4).flat_map(page).collect();
        let path = folder.path().join("16384");
        std::fs::write(&path, &on_disk).expect("write");
        let handle = File::open(folder.path()).expect("folder");
        let pool = BufferPool::new(1, 64 << 10).expect("pool");
        for mode in [IoMode::Direct, IoMode::Threads] {
            let file = DiskFile::open_read(&handle, "16384", mode).expect("file");
            let mut guard = guard(&pool);
            // Torn in memory, whole on disk; and one more that has gone from there.
            let mut read = on_disk.clone();
            read[PAGE_SIZE + 5000] ^= 1;
            read.extend_from_slice(&page(9));
            guard.check(&file, b"base/5/16384", BlockNumber(0), 0, &mut read).expect("read");
            assert_eq!(read[..4 * PAGE_SIZE], on_disk);
            assert!(read[4 * PAGE_SIZE..].iter().all(|byte| *byte == 0), "a page behind the end is zeros");
            assert_eq!(guard.findings.take(), (0, Vec::new()));
        }
        // Damaged on disk; and a page that says it is new and is not empty.
        let damaged = File::options().write(true).open(&path).expect("file");
        damaged.write_all_at(&[1, 2, 3], 2 * PAGE_SIZE as u64 + 4000).expect("write");
        damaged.write_all_at(&[0, 0], 3 * PAGE_SIZE as u64 + 14).expect("write");
        let file = DiskFile::open_read(&handle, "16384", IoMode::Threads).expect("file");
        let mut read = std::fs::read(&path).expect("read");
        let mut guard = guard(&pool);
        guard.check(&file, b"base/5/16384", BlockNumber(0), 0, &mut read).expect("read");
        let (count, told) = guard.findings.take();
        assert_eq!(count, 2);
        assert!(told[0].starts_with("base/5/16384: block 2: ") && told[1].contains("block 3: "), "{told:?}");
    }
}
