//! Whether a page was changed since a position, by what its header says.
//!
//! docs/architecture.md, *Incremental backups*, says under which conditions this can be believed.

use pgstrata_protocol::Lsn;
use pgstrata_protocol::page::{PAGE_SIZE, PageHeader};

/// `FirstNormalUnloggedLSN` (`access/xlogdefs.h`): pages that were built without WAL have a smaller one, or none.
const FIRST_LOGGED: Lsn = Lsn(1000);

/// Whether a page may have been changed at or after `since`. What is no page with a valid header counts as changed.
pub(crate) fn is_changed(page: &[u8; PAGE_SIZE], since: Lsn) -> bool {
    let header = PageHeader::parse(page);
    header.is_new() || header.check().is_err() || header.lsn < FIRST_LOGGED || header.lsn >= since
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_older_page_is_unchanged() {
        let mut page = [0u8; PAGE_SIZE];
        let since = Lsn(0x1_0000_1000);
        assert!(is_changed(&page, since), "a new page");
        page[12..14].copy_from_slice(&24u16.to_le_bytes());
        page[14..16].copy_from_slice(&8192u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
        for (high, low, changed) in [
            (1u32, 0xFFFu32, false),
            (1, 0x1000, true),
            (1, 0x1001, true),
            (2, 0, true),
            (0, 0x2000_0000, false),
            (0, 1000, false),
            (0, 999, true),
            (0, 1, true),
            (0, 0, true),
        ] {
            page[..4].copy_from_slice(&high.to_le_bytes());
            page[4..8].copy_from_slice(&low.to_le_bytes());
            assert_eq!(is_changed(&page, since), changed, "{high:X}/{low:X}");
        }
        page[..8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x10]);
        assert!(!is_changed(&page, since));
        // Not a page of this layout; and one that says it is new and is not empty.
        page[18] = 0x05;
        assert!(is_changed(&page, since));
        page[18] = 0x04;
        page[14..16].copy_from_slice(&0u16.to_le_bytes());
        assert!(is_changed(&page, since));
    }
}
