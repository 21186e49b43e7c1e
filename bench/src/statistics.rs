//! What a handful of runs says: the least, the middle, the most. No means: one disturbed run would move them.

use serde::Serialize;

/// Least, middle and most of some measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The least.
    pub(crate) min: f64,
    /// The middle one, or the mean of the middle two.
    pub(crate) median: f64,
    /// The most.
    pub(crate) max: f64,
}

impl Spread {
    /// Of some numbers; `None` where there are none, or one is not a number.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { min: values[0], median, max: values[values.len() - 1] })
    }
}

/// One quantity over all pairs: both rivals, and the ratio within each pair, which a machine that gets slower or
/// faster during the run disturbs least.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// PostgreSQL's program.
    pub(crate) stock: Spread,
    /// pgstrata.
    pub(crate) ours: Spread,
    /// pgstrata's value over the other's, pair by pair; none where the other's was zero, as CPU ticks may be.
    pub(crate) ratio: Option<Spread>,
}

impl Comparison {
    /// Of pairs of stock and ours; `None` where there are none.
    pub(crate) fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let pairs: Vec<(f64, f64)> = pairs.into_iter().collect();
        let comparable = pairs.iter().all(|(stock, _)| *stock > 0.0);
        Some(Self {
            stock: Spread::of(pairs.iter().map(|(stock, _)| *stock))?,
            ours: Spread::of(pairs.iter().map(|(_, ours)| *ours))?,
            ratio: comparable.then(|| Spread::of(pairs.iter().map(|(stock, ours)| ours / stock))).flatten(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        let spread = |min, median, max| Some(Spread { min, median, max });
        for (values, expected) in [
            (vec![], None),
            (vec![4.0], spread(4.0, 4.0, 4.0)),
            (vec![3.0, 1.0], spread(1.0, 2.0, 3.0)),
            (vec![9.0, 1.0, 2.0], spread(1.0, 2.0, 9.0)),
            (vec![4.0, 1.0, 2.0, 100.0], spread(1.0, 3.0, 100.0)),
            (vec![1.0, f64::NAN], None),
        ] {
            assert_eq!(Spread::of(values.clone()), expected, "{values:?}");
        }
    }

    #[test]
    fn ratios_are_of_pairs_not_of_spreads() {
        let found = Comparison::of([(10.0, 5.0), (20.0, 18.0), (40.0, 10.0)]).unwrap();
        assert_eq!(found.stock, Spread { min: 10.0, median: 20.0, max: 40.0 });
        assert_eq!(found.ours, Spread { min: 5.0, median: 10.0, max: 18.0 });
        assert_eq!(found.ratio, Some(Spread { min: 0.25, median: 0.5, max: 0.9 }));
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        assert_eq!(Comparison::of([(0.0, 1.0), (1.0, 1.0)]).unwrap().ratio, None);
        assert_eq!(Comparison::of([]), None);
    }
}
