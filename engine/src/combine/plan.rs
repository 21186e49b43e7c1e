//! Where each block of a file comes from: the newest backup that holds it, as pg_combinebackup decides
//! (`reconstruct_from_incremental_file`, `src/bin/pg_combinebackup/reconstruct.c`). Performs no I/O.
//!
//! Sources are given newest first. A block that nobody holds and that lies below the least length that the newest
//! incremental file asks for is one that the server extended the file by and never wrote: zeros.

/// A stretch of blocks of the file that come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The first block.
    pub(super) block: u32,
    /// How many.
    pub(super) count: u32,
    /// From where; none for zeros.
    pub(super) from: Option<Place>,
}

/// A place in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The source's number, in the order in which they were given.
    pub(super) source: u16,
    /// Which block of those that it holds, from 0.
    pub(super) at: u32,
}

/// Where all blocks come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Ascending and without gaps.
    pub(super) stretches: Vec<Stretch>,
    /// The file's length in blocks.
    pub(super) blocks: u32,
    /// The last source is a full file that is the file as it stands.
    pub(super) is_last_source: bool,
}

/// A plan in the making.
#[derive(Debug)]
pub(super) struct Planner {
    /// For each block the source and the place in it; `NOBODY` for those that none was found for yet.
    places: Vec<(u16, u32)>,
    /// Only blocks below are looked for in older sources.
    limit: u32,
    sources: u16,
    /// Whether an incremental file gave any block.
    patched: bool,
}

const NOBODY: (u16, u32) = (u16::MAX, 0);

impl Planner {
    /// Begins with the newest source, an incremental file: the blocks it holds, ascending, and the length it asks for.
    pub(super) fn new(numbers: &[u32], truncation_length: u32) -> Self {
        let length = numbers.last().map_or(0, |last| last + 1).max(truncation_length);
        let mut planner =
            Self { places: vec![NOBODY; length as usize], limit: length, sources: 0, patched: false };
        planner.incremental(numbers);
        planner.limit = truncation_length;
        planner
    }

    /// Takes an older incremental file.
    pub(super) fn incremental(&mut self, numbers: &[u32]) {
        for (at, number) in (0..).zip(numbers) {
            self.take(*number, at);
        }
        self.sources += 1;
    }

    /// Takes the full file that ends the chain: `bytes` is its length.
    pub(super) fn full(mut self, bytes: u64, block_size: u32) -> Plan {
        let is_last_source = !self.patched && bytes == u64::from(self.limit) * u64::from(block_size);
        let has = u32::try_from(bytes / u64::from(block_size)).unwrap_or(u32::MAX);
        let patched = self.patched;
        for number in 0..self.limit.min(has) {
            self.take(number, number);
        }
        self.patched = patched;
        Plan { stretches: self.stretches(), blocks: self.length(), is_last_source }
    }

    fn length(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    fn take(&mut self, number: u32, at: u32) {
        if number < self.limit
            && let Some(place) = self.places.get_mut(number as usize).filter(|place| **place == NOBODY)
        {
            *place = (self.sources, at);
            self.patched = true;
        }
    }

    fn stretches(&self) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for (block, place) in (0..).zip(&self.places) {
            let from = (*place != NOBODY).then_some(Place { source: place.0, at: place.1 });
            if let Some(last) = stretches.last_mut() {
                let goes_on = match (last.from, from) {
                    (None, None) => true,
                    (Some(before), Some(next)) => {
                        before.source == next.source && before.at + last.count == next.at
                    }
                    _ => false,
                };
                if goes_on {
                    last.count += 1;
                    continue;
                }
            }
            stretches.push(Stretch { block, count: 1, from });
        }
        stretches
    }
}

impl Plan {
    /// The stretches of `count` blocks from `block`, cut to these.
    pub(super) fn within(&self, block: u32, count: u32) -> impl Iterator<Item = Stretch> + '_ {
        let first = self.stretches.partition_point(|stretch| stretch.block + stretch.count <= block);
        let end = block + count;
        self.stretches[first..].iter().take_while(move |stretch| stretch.block < end).map(move |stretch| {
            let begin = stretch.block.max(block);
            let skipped = begin - stretch.block;
            Stretch {
                block: begin,
                count: (stretch.block + stretch.count).min(end) - begin,
                from: stretch.from.map(|from| Place { at: from.at + skipped, ..from }),
            }
        })
    }

    /// Blocks that come from a source, and how many blocks of it are needed at least: none needed is `(0, 0)`.
    pub(super) fn share(&self, source: u16) -> (u32, u32) {
        let of = self.stretches.iter().filter_map(|stretch| {
            stretch
                .from
                .filter(|from| from.source == source)
                .map(|from| (stretch.count, from.at + stretch.count))
        });
        of.fold((0, 0), |(blocks, reach), (count, end)| (blocks + count, reach.max(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// An incremental file of the model: its blocks by number, each with a value that no other has.
    type Model = BTreeMap<u32, u64>;

    fn plan(newest: &Model, truncation: u32, older: &[Model], full: u32, rest: u64) -> Plan {
        let numbers = |model: &Model| model.keys().copied().collect::<Vec<_>>();
        let mut planner = Planner::new(&numbers(newest), truncation);
        for model in older {
            planner.incremental(&numbers(model));
        }
        planner.full(u64::from(full) * 8192 + rest, 8192)
    }

    /// Reads the file by its plan.
    fn carried_out(plan: &Plan, newest: &Model, older: &[Model]) -> Vec<u64> {
        let mut file = Vec::new();
        for stretch in &plan.stretches {
            assert_eq!(stretch.block as usize, file.len());
            for step in 0..stretch.count {
                file.push(match stretch.from {
                    None => 0,
                    Some(Place { source, at }) => {
                        let at = at + step;
                        let model = std::iter::once(newest).chain(older).nth(source.into());
                        // Behind the incremental ones comes the full file.
                        let value = model.map(|model| *model.values().nth(at as usize).expect("it has it"));
                        value.unwrap_or(full_block(at))
                    }
                });
            }
        }
        file
    }

    fn full_block(number: u32) -> u64 {
        1 << 40 | u64::from(number)
    }

    /// What a server would have: the full file cut or extended and written over, backup by backup.
    fn naive(newest: &Model, truncation: u32, older: &[Model], full: u32) -> Vec<u64> {
        let length = newest.keys().next_back().map_or(0, |last| last + 1).max(truncation);
        let lookup = |block: u32| {
            if let Some(value) = newest.get(&block) {
                return *value;
            }
            if block >= truncation {
                return 0;
            }
            let older = older.iter().find_map(|model| model.get(&block).copied());
            older.unwrap_or(if block < full { full_block(block) } else { 0 })
        };
        (0..length).map(lookup).collect()
    }

    fn model(backup: u64) -> impl Strategy<Value = Model> {
        proptest::collection::btree_set(0u32..40, 0..25).prop_map(move |blocks| {
            blocks.into_iter().map(|block| (block, backup << 32 | u64::from(block))).collect()
        })
    }

    proptest! {
        #[test]
        fn as_the_naive_model(
            newest in model(9),
            older in (model(8), model(7), model(6)),
            depth in 0usize..=3,
            truncation in 0u32..45,
            full in 0u32..45,
            rest in 0u64..2,
            window in 1u32..20,
        ) {
            let older = &[older.0, older.1, older.2][..depth];
            let plan = plan(&newest, truncation, older, full, rest * 100);
            let file = carried_out(&plan, &newest, older);
            prop_assert_eq!(&file, &naive(&newest, truncation, older, full));
            prop_assert_eq!(file.len(), plan.blocks as usize);
            // Neighbours are joined.
            for pair in plan.stretches.windows(2) {
                let joined = match (pair[0].from, pair[1].from) {
                    (None, None) => true,
                    (Some(one), Some(next)) => one.source == next.source && one.at + pair[0].count == next.at,
                    _ => false,
                };
                prop_assert!(!joined, "{:?}", pair);
            }
            // Cut into windows it is the same.
            let mut blocks = Vec::new();
            for begin in (0..plan.blocks).step_by(window as usize) {
                for stretch in plan.within(begin, window.min(plan.blocks - begin)) {
                    for step in 0..stretch.count {
                        blocks.push((stretch.block + step, stretch.from.map(|from| (from.source, from.at + step))));
                    }
                }
            }
            let whole = plan.stretches.iter().flat_map(|stretch| {
                (0..stretch.count).map(|step| {
                    (stretch.block + step, stretch.from.map(|from| (from.source, from.at + step)))
                })
            });
            prop_assert_eq!(blocks, whole.collect::<Vec<_>>());
            // A file is taken as it stands only where that is the same.
            if plan.is_last_source {
                prop_assert_eq!(rest, 0);
                prop_assert_eq!(file, (0..full).map(full_block).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn unchanged_files_are_told() {
        let none = Model::new();
        assert!(plan(&none, 5, std::slice::from_ref(&none), 5, 0).is_last_source);
        assert!(plan(&none, 0, &[], 0, 0).is_last_source);
        assert!(!plan(&none, 5, &[], 5, 1).is_last_source);
        assert!(!plan(&none, 4, &[], 5, 0).is_last_source);
        let one: Model = [(2, 1)].into();
        assert!(!plan(&one, 5, &[], 5, 0).is_last_source);
        assert!(!plan(&none, 5, std::slice::from_ref(&one), 5, 0).is_last_source);
        // What was cut off since does not count.
        assert!(plan(&none, 2, &[one], 2, 0).is_last_source);
        assert_eq!(plan(&none, 3, &[], 1, 0).share(7), (0, 0));
        let shared = plan(&[(1, 7)].into(), 4, &[], 9, 0);
        assert_eq!((shared.share(0), shared.share(1)), ((1, 1), (3, 4)));
    }
}
