//! Names, labels, maps and pages: nothing panics, and what has one spelling keeps it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgstrata_protocol::label::{BackupLabel, TablespaceMap};
use pgstrata_protocol::names::{RelationFile, WalFile, WalSegmentSize, is_checksum_exempt};
use pgstrata_protocol::page::{PAGE_SIZE, PageHeader, check_page};
use pgstrata_protocol::tar::MemberPath;
use pgstrata_protocol::{BlockNumber, Lsn};

fuzz_target!(|input: &[u8]| {
    let _ = BackupLabel::parse(input);
    if let Ok(map) = TablespaceMap::parse(input) {
        assert_eq!(TablespaceMap::parse(&map.to_bytes()).as_ref(), Ok(&map));
    }
    if let Some(file) = RelationFile::parse(input) {
        let _ = file.first_block();
    }
    let _ = is_checksum_exempt(input);
    for megabytes in [1, 16, 1024] {
        let size = WalSegmentSize::new(megabytes << 20).expect("a power of two from 1 MB to 1 GB");
        if let Some(file) = WalFile::parse(input, size) {
            assert_eq!(file.file_name(size).as_bytes(), input);
        }
    }
    if let Ok(path) = MemberPath::parse(input) {
        assert_eq!(MemberPath::check(path.as_bytes()).is_ok(), !path.is_root());
        assert!(!path.as_path().is_absolute());
        for component in path.components() {
            assert!(component != b".." && component != b".");
        }
    }
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(lsn) = text.parse::<Lsn>() {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
        if let Ok(size) = text.parse::<WalSegmentSize>() {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
    let mut page = [0; PAGE_SIZE];
    let length = input.len().min(PAGE_SIZE);
    page[..length].copy_from_slice(&input[..length]);
    let _ = PageHeader::parse(&page).check();
    let _ = check_page(&page, BlockNumber(length as u32), Lsn(u64::MAX));
});
