use proptest::prelude::*;

use super::*;

fn geometry() -> Geometry {
    Geometry::new(8192, 1 << 30).expect("what everyone builds")
}

/// A right file of these blocks; each block is filled with the low byte of its number.
fn file(truncation: u32, blocks: &[u32]) -> Vec<u8> {
    let mut file = Vec::new();
    let count = u32::try_from(blocks.len()).expect("few");
    for number in [MAGIC, count, truncation].iter().chain(blocks) {
        file.extend_from_slice(&number.to_le_bytes());
    }
    if !blocks.is_empty() {
        file.resize(file.len().next_multiple_of(8192), 0);
    }
    for number in blocks {
        file.extend(std::iter::repeat_n(number.to_le_bytes()[0], 8192));
    }
    file
}

/// What a file is made of: its header, and each block's number and bytes.
type Content = (Option<IncrementalHeader>, Vec<(u32, Vec<u8>)>);

fn decode(length: u64, pieces: &[&[u8]]) -> Result<Content, IncrementalError> {
    let mut decoder = IncrementalDecoder::new(geometry(), length);
    let (mut header, mut blocks) = (None, Vec::<(u32, Vec<u8>)>::new());
    for mut piece in pieces.iter().copied() {
        while let Some(event) = decoder.next(&mut piece)? {
            match event {
                IncrementalEvent::Header(found) => header = Some(found),
                IncrementalEvent::Block { number, bytes, first, last } => {
                    if first {
                        blocks.push((number, Vec::new()));
                    }
                    let (begun, content) = blocks.last_mut().expect("a block was begun");
                    assert_eq!(*begun, number);
                    content.extend_from_slice(bytes);
                    assert_eq!(last, content.len() == 8192);
                }
            }
        }
        assert!(piece.is_empty());
    }
    decoder.finish()?;
    assert_eq!(decoder.offset(), length);
    Ok((header, blocks))
}

fn whole(file: &[u8]) -> Result<Content, IncrementalError> {
    decode(file.len() as u64, &[file])
}

#[test]
fn reads_what_servers_write() {
    for (truncation, numbers) in [
        (0, vec![]),
        (131_072, vec![]),
        (7, vec![0]),
        (7, vec![3, 4, 131_071]),
        // As many numbers as fill the first block to its end, and one more.
        (131_072, (0..2045).collect()),
        (131_072, (0..2046).map(|number| number * 2).collect()),
    ] {
        let (header, blocks) = whole(&file(truncation, &numbers)).expect("a right file");
        let count = u32::try_from(numbers.len()).expect("few");
        assert_eq!(header, Some(IncrementalHeader { blocks: count, truncation_length: truncation }));
        assert_eq!(blocks.iter().map(|(number, _)| *number).collect::<Vec<_>>(), numbers);
        assert!(
            blocks.iter().all(|(number, bytes)| bytes.iter().all(|byte| *byte == number.to_le_bytes()[0]))
        );
        assert_eq!(geometry().file_length(count), file(truncation, &numbers).len() as u64);
    }
    assert_eq!(file(7, &[]).len(), 12);
}

#[test]
fn refuses_damage() {
    let right = file(9, &[1, 5, 8]);
    let put = |at: usize, bytes: &[u8]| {
        let mut file = right.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let number = |at: usize, number: u32| put(at, &number.to_le_bytes());
    let length = right.len() as u64;
    let (limit, most) = (131_072, 131_072);
    for (damaged, expected) in [
        (number(0, 0xd3ae_1f0e), IncrementalError::Magic { found: 0xd3ae_1f0e }),
        (put(0, &MAGIC.to_be_bytes()), IncrementalError::Magic { found: MAGIC.swap_bytes() }),
        (number(4, 131_073), IncrementalError::BlockCount { found: 131_073, most }),
        (number(4, u32::MAX), IncrementalError::BlockCount { found: u32::MAX, most }),
        (number(8, 131_073), IncrementalError::TruncationLength { found: 131_073, most }),
        (number(4, 2), IncrementalError::Length { found: length, expected: length - 8192, blocks: 2 }),
        (number(4, 0), IncrementalError::Length { found: length, expected: 12, blocks: 0 }),
        (
            number(4, 131_072),
            IncrementalError::Length { found: length, expected: 131_072 * 8196 + 8192, blocks: 131_072 },
        ),
        (number(12, 131_072), IncrementalError::BlockNumber { entry: 0, found: 131_072, limit }),
        (number(20, u32::MAX), IncrementalError::BlockNumber { entry: 2, found: u32::MAX, limit }),
        (number(16, 1), IncrementalError::Order { entry: 1, found: 1, previous: 1 }),
        (number(20, 4), IncrementalError::Order { entry: 2, found: 4, previous: 5 }),
        (put(24, &[1]), IncrementalError::Padding { offset: 24, found: 1 }),
        (put(8191, &[0xff]), IncrementalError::Padding { offset: 8191, found: 0xff }),
    ] {
        for piece in [1, 3, 4096, damaged.len()] {
            let pieces: Vec<&[u8]> = damaged.chunks(piece).collect();
            assert_eq!(decode(length, &pieces), Err(expected.clone()), "in pieces of {piece}");
        }
    }
    // Shorter or longer than said.
    for cut in [0, 1, 11, 12, 13, 8191, 8192, right.len() - 1] {
        let found = cut as u64;
        assert_eq!(
            decode(length, &[&right[..cut]]),
            Err(IncrementalError::Cut { found, expected: length }),
            "{cut}"
        );
    }
    assert_eq!(decode(length, &[&right, &[0]]), Err(IncrementalError::TooLong { expected: length }));
    let mut decoder = IncrementalDecoder::new(geometry(), length);
    assert!(decoder.next(&mut &[0; 12][..]).is_err());
    assert_eq!(decoder.next(&mut &right[..]), Err(IncrementalError::Failed));
    assert_eq!(decoder.finish(), Err(IncrementalError::Failed));
}

#[test]
fn geometries() {
    for (block, segment, right) in [
        (8192, 1 << 30, true),
        (1024, 1024, true),
        (32_768, 1 << 37, true),
        (8192, 1 << 37, false),
        (8192, 0, false),
        (8192, 8191, false),
        (8192, 12_288, false),
        (0, 1 << 30, false),
        (512, 1 << 30, false),
        (65_536, 1 << 30, false),
        (u64::MAX, u64::MAX, false),
    ] {
        assert_eq!(Geometry::new(block, segment).is_ok(), right, "{block}, {segment}");
    }
    let geometry = Geometry::new(8192, 2 << 30).expect("built with --with-segsize=2");
    assert_eq!((geometry.block_size(), geometry.segment_blocks()), (8192, 262_144));
}

proptest! {
    #[test]
    fn cuts_change_nothing(
        numbers in proptest::collection::btree_set(0u32..131_072, 0..40),
        truncation in 0u32..131_073,
        damage in proptest::option::of((any::<proptest::sample::Index>(), 1u8..)),
        cuts in proptest::collection::vec(1usize..9000, 0..20),
    ) {
        let mut bytes = file(truncation, &numbers.into_iter().collect::<Vec<_>>());
        if let Some((place, change)) = damage {
            let place = place.index(bytes.len().min(300));
            bytes[place] ^= change;
        }
        let (mut pieces, mut left) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (piece, rest) = left.split_at(cut.min(left.len()));
            pieces.push(piece);
            left = rest;
        }
        pieces.push(left);
        prop_assert_eq!(decode(bytes.len() as u64, &pieces), whole(&bytes));
    }

    #[test]
    fn no_bytes_are_too_wild(bytes in proptest::collection::vec(any::<u8>(), 0..64), length in any::<u64>()) {
        let mut file = MAGIC.to_le_bytes().to_vec();
        file.extend_from_slice(&bytes);
        let _ = decode(length, &[&file]);
    }
}
