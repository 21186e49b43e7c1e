//! Server versions, as far as they change what is said to a server.

use std::fmt;

/// A server's version as `server_version_num` counts it: 150018 is 15.18, 90624 is 9.6.24.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServerVersion(pub u32);

impl ServerVersion {
    /// The oldest server that backups are taken from: 13 is the first with a `backup_manifest`.
    pub const OLDEST_SUPPORTED: ServerVersion = ServerVersion(130_000);

    /// Reads the `server_version` parameter: `15.18 (Debian 15.18-0+deb12u1)`, `18beta1`, `17devel`, `9.6.24`.
    ///
    /// Returns `None` where the text does not begin with a number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number_at = |text: &str| -> Option<(u32, usize)> {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            Some((text.get(..digits)?.parse().ok().filter(|n| *n < 10_000)?, digits))
        };
        let (major, used) = number_at(text)?;
        let minor_after = |rest: &str| rest.strip_prefix('.').and_then(number_at);
        let rest = &text[used..];
        let Some((minor, used)) = minor_after(rest) else { return Some(Self(major * 10_000)) };
        if major >= 10 {
            return Some(Self(major * 10_000 + minor));
        }
        let patch = minor_after(&rest[1 + used..]).map_or(0, |(patch, _)| patch);
        Some(Self(major * 10_000 + minor * 100 + patch))
    }

    /// What WAL pages of this version's releases begin with (`XLOG_PAGE_MAGIC`, `access/xlog_internal.h`); `None` for
    /// versions that this program does not know.
    #[must_use]
    pub fn wal_magic(self) -> Option<u16> {
        match self.major() {
            13 => Some(0xD106),
            14 => Some(0xD10D),
            15 => Some(0xD110),
            16 => Some(0xD113),
            17 => Some(0xD116),
            18 => Some(0xD118),
            _ => None,
        }
    }

    /// The major version: 15 for 15.18.
    #[must_use]
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.major() >= 10 {
            write!(f, "{}.{}", self.major(), self.0 % 10_000)
        } else {
            write!(f, "{}.{}.{}", self.major(), self.0 / 100 % 100, self.0 % 100)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_say() {
        for (text, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
            ("18beta1", 180_000),
            ("17devel", 170_000),
            ("9.6.24", 90_624),
            ("13.23", 130_023),
        ] {
            assert_eq!(ServerVersion::parse(text), Some(ServerVersion(number)), "{text}");
        }
        for text in ["", "devel", "99999999999", ".5"] {
            assert_eq!(ServerVersion::parse(text), None, "{text}");
        }
    }
}
