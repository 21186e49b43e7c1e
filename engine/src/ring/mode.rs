//! The ways to reach a disk, by the names that `--io` takes.

use std::fmt;
use std::str::FromStr;

/// How data files are written and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoMode {
    /// A ring over files opened with `O_DIRECT`: past the page cache, aligned.
    Direct,
    /// A ring over buffered files with `RWF_DONTCACHE` (linux/fs.h): through the page cache, which drops
    /// the pages once they are written.
    Uncached,
    /// A few plain threads over buffered files. Works everywhere.
    Threads,
}

impl IoMode {
    /// Every mode, in the order in which a probe prefers them.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Uncached, Self::Threads];

    /// The name that `--io` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Uncached => "uncached",
            Self::Threads => "threads",
        }
    }
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no I/O mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown I/O mode \"{found}\", expected direct, uncached or threads")]
pub struct UnknownIoMode {
    /// The word.
    pub found: String,
}

impl FromStr for IoMode {
    type Err = UnknownIoMode;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == word)
            .ok_or_else(|| UnknownIoMode { found: word.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for mode in IoMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for word in ["", "auto", "Direct", "direct "] {
            assert_eq!(word.parse::<IoMode>(), Err(UnknownIoMode { found: word.to_owned() }));
        }
    }
}
