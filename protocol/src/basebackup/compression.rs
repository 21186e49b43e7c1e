//! Reads compression specifications as PostgreSQL's programs take them (`src/common/compression.c`).
//!
//! `METHOD[:DETAIL]`, or a bare integer. DETAIL is a bare level, or `level=`, `workers=` and `long` between commas.
//! A specification for the server's own compression is passed on as it is: the server judges it.

use std::fmt;

/// Levels of zstd: `ZSTD_minCLevel()` and `ZSTD_maxCLevel()` (`zstd.h`: `-ZSTD_TARGETLENGTH_MAX`, `ZSTD_MAX_CLEVEL`).
const ZSTD_LEVELS: (i32, i32) = (-(1 << 17), 22);
/// `ZSTD_CLEVEL_DEFAULT` (`zstd.h`).
const ZSTD_DEFAULT_LEVEL: i32 = 3;
/// `Z_DEFAULT_COMPRESSION` (`zlib.h`).
const GZIP_DEFAULT_LEVEL: i32 = -1;

/// How archives are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompressionMethod {
    /// One gzip stream an archive.
    Gzip,
    /// One LZ4 frame an archive.
    Lz4,
    /// One Zstandard frame an archive.
    Zstd,
}

impl CompressionMethod {
    /// All of them.
    pub const ALL: [CompressionMethod; 3] =
        [CompressionMethod::Gzip, CompressionMethod::Lz4, CompressionMethod::Zstd];

    /// The name in commands and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            CompressionMethod::Gzip => "gzip",
            CompressionMethod::Lz4 => "lz4",
            CompressionMethod::Zstd => "zstd",
        }
    }

    /// What the name of a compressed archive ends with, dot included.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            CompressionMethod::Gzip => ".gz",
            CompressionMethod::Lz4 => ".lz4",
            CompressionMethod::Zstd => ".zst",
        }
    }

    /// The levels that are taken besides the default, and the default.
    fn levels(self) -> (i32, i32, i32) {
        match self {
            CompressionMethod::Gzip => (1, 9, GZIP_DEFAULT_LEVEL),
            // 0 is the fast mode.
            CompressionMethod::Lz4 => (1, 12, 0),
            CompressionMethod::Zstd => (ZSTD_LEVELS.0, ZSTD_LEVELS.1, ZSTD_DEFAULT_LEVEL),
        }
    }
}

impl fmt::Display for CompressionMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who compresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionSide {
    /// `client-…`
    Client,
    /// `server-…`
    Server,
}

/// A `--compress` argument, taken apart and not judged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressionRequest {
    /// Who is to compress, where that was said.
    pub side: Option<CompressionSide>,
    /// The method's name, whatever was written.
    pub method: String,
    /// What stands behind the colon.
    pub detail: Option<String>,
}

impl CompressionRequest {
    /// Takes an argument apart. Everything has a meaning, if only that nobody knows the method.
    #[must_use]
    pub fn parse(argument: &str) -> Self {
        let (side, rest) = if let Some(rest) = argument.strip_prefix("server-") {
            (Some(CompressionSide::Server), rest)
        } else if let Some(rest) = argument.strip_prefix("client-") {
            (Some(CompressionSide::Client), rest)
        } else {
            (None, argument)
        };
        let of = |method: &str, detail: Option<&str>| Self {
            side,
            method: method.to_owned(),
            detail: detail.map(str::to_owned),
        };
        match integer(rest) {
            Some(0) => of("none", None),
            Some(_) => of("gzip", Some(rest)),
            // `strtol` reads no number, and then stands at the end.
            None if rest.is_empty() => of("none", None),
            None => match rest.split_once(':') {
                Some((method, detail)) => of(method, Some(detail)),
                None => of(rest, None),
            },
        }
    }

    /// What the client is to do: `None` for no compression.
    ///
    /// # Errors
    /// What is wrong with the request, in PostgreSQL's words.
    pub fn specification(&self) -> Result<Option<CompressionSpec>, CompressionError> {
        let method = CompressionMethod::ALL.into_iter().find(|method| method.name() == self.method);
        match method {
            Some(method) => CompressionSpec::parse(method, self.detail.as_deref()).map(Some),
            None if self.method == "none" => {
                let detail = self.detail.as_deref().map_or(Ok(Detail::default()), Detail::parse)?;
                detail.check_none()?;
                Ok(None)
            }
            None => Err(CompressionError::UnknownMethod { found: self.method.clone() }),
        }
    }
}

/// A compression, fully decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressionSpec {
    /// The method.
    pub method: CompressionMethod,
    /// Its level; the method's own default where none was said: -1 for gzip, 0 for lz4, 3 for zstd.
    pub level: i32,
    /// Threads, where they were asked for; zstd only.
    pub workers: Option<i32>,
    /// Whether zstd is to look for matches far back, where that was said.
    pub long: Option<bool>,
}

impl CompressionSpec {
    /// Reads and checks the detail of a method.
    ///
    /// # Errors
    /// What is wrong with it, in PostgreSQL's words.
    pub fn parse(method: CompressionMethod, detail: Option<&str>) -> Result<Self, CompressionError> {
        let Detail { level, workers, long } = detail.map_or(Ok(Detail::default()), Detail::parse)?;
        let (lowest, highest, default) = method.levels();
        let level = level.unwrap_or(default);
        if !(lowest..=highest).contains(&level) && level != default {
            return Err(CompressionError::Level { method, lowest, highest, default });
        }
        if method != CompressionMethod::Zstd {
            if workers.is_some() {
                return Err(CompressionError::Workers { method: method.name() });
            }
            if long.is_some() {
                return Err(CompressionError::Long { method: method.name() });
            }
        }
        Ok(Self { method, level, workers, long })
    }
}

/// Why a specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// No such method.
    #[error("unrecognized compression algorithm: \"{found}\"")]
    UnknownMethod {
        /// Its name.
        found: String,
    },
    /// Nothing between two commas.
    #[error("invalid compression specification: found empty string where a compression option was expected")]
    Empty,
    /// No such option.
    #[error("invalid compression specification: unrecognized compression option: \"{found}\"")]
    UnknownOption {
        /// Its name.
        found: String,
    },
    /// An option without its value.
    #[error("invalid compression specification: compression option \"{option}\" requires a value")]
    NoValue {
        /// Its name.
        option: &'static str,
    },
    /// A value that is no integer.
    #[error(
        "invalid compression specification: value for compression option \"{option}\" must be an integer"
    )]
    NoInteger {
        /// Its name.
        option: &'static str,
    },
    /// A value that is neither true nor false.
    #[error(
        "invalid compression specification: value for compression option \"{option}\" must be a Boolean value"
    )]
    NoBoolean {
        /// Its name.
        option: &'static str,
    },
    /// A level that the method does not have.
    #[error(
        "invalid compression specification: compression algorithm \"{method}\" expects a compression level \
         between {lowest} and {highest} (default at {default})"
    )]
    Level {
        /// The method.
        method: CompressionMethod,
        /// The lowest level.
        lowest: i32,
        /// The highest level.
        highest: i32,
        /// The level that is taken where none is said.
        default: i32,
    },
    /// A level for no compression.
    #[error(
        "invalid compression specification: compression algorithm \"none\" does not accept a compression level"
    )]
    LevelOfNone,
    /// Workers for a method that has none.
    #[error(
        "invalid compression specification: compression algorithm \"{method}\" does not accept a worker count"
    )]
    Workers {
        /// The method.
        method: &'static str,
    },
    /// Long-distance mode for a method that has none.
    #[error(
        "invalid compression specification: compression algorithm \"{method}\" does not support long-distance mode"
    )]
    Long {
        /// The method.
        method: &'static str,
    },
}

/// What stands behind the colon.
#[derive(Clone, Copy, Debug, Default)]
struct Detail {
    level: Option<i32>,
    workers: Option<i32>,
    long: Option<bool>,
}

impl Detail {
    fn parse(text: &str) -> Result<Self, CompressionError> {
        if let Some(level) = integer(text) {
            return Ok(Self { level: Some(level), ..Self::default() });
        }
        let mut detail = Self::default();
        for item in text.split(',') {
            let (keyword, value) = match item.split_once('=') {
                Some((keyword, value)) => (keyword, Some(value)),
                None => (item, None),
            };
            match keyword {
                "" => return Err(CompressionError::Empty),
                "level" => detail.level = Some(integer_value("level", value)?),
                "workers" => detail.workers = Some(integer_value("workers", value)?),
                "long" => detail.long = Some(boolean_value("long", value)?),
                other => return Err(CompressionError::UnknownOption { found: other.to_owned() }),
            }
        }
        Ok(detail)
    }

    fn check_none(&self) -> Result<(), CompressionError> {
        match self {
            Detail { level: Some(level), .. } if *level != 0 => Err(CompressionError::LevelOfNone),
            Detail { workers: Some(_), .. } => Err(CompressionError::Workers { method: "none" }),
            Detail { long: Some(_), .. } => Err(CompressionError::Long { method: "none" }),
            _ => Ok(()),
        }
    }
}

fn integer_value(option: &'static str, value: Option<&str>) -> Result<i32, CompressionError> {
    let value = value.ok_or(CompressionError::NoValue { option })?;
    integer(value).ok_or(CompressionError::NoInteger { option })
}

fn boolean_value(option: &'static str, value: Option<&str>) -> Result<bool, CompressionError> {
    match value.map(str::to_ascii_lowercase).as_deref() {
        None | Some("yes" | "on" | "1") => Ok(true),
        Some("no" | "off" | "0") => Ok(false),
        Some(_) => Err(CompressionError::NoBoolean { option }),
    }
}

/// A whole text that strtol(3) reads in base 10. What no `int` can hold is as far off as an `int` can be, and so out
/// of every range.
fn integer(text: &str) -> Option<i32> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(if text.starts_with('-') { i32::MIN } else { i32::MAX }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_taken_apart() {
        use CompressionSide::{Client, Server};
        for (argument, side, method, detail) in [
            ("gzip", None, "gzip", None),
            ("client-lz4:6", Some(Client), "lz4", Some("6")),
            ("server-zstd:level=3,long", Some(Server), "zstd", Some("level=3,long")),
            ("5", None, "gzip", Some("5")),
            ("server-9", Some(Server), "gzip", Some("9")),
            ("-1", None, "gzip", Some("-1")),
            ("0", None, "none", None),
            ("", None, "none", None),
            ("client-", Some(Client), "none", None),
            ("none", None, "none", None),
            ("turkey:sandwich:x", None, "turkey", Some("sandwich:x")),
            ("gzip:", None, "gzip", Some("")),
        ] {
            let expected =
                CompressionRequest { side, method: method.to_owned(), detail: detail.map(str::to_owned) };
            assert_eq!(CompressionRequest::parse(argument), expected, "{argument:?}");
        }
    }

    #[test]
    fn specifications() {
        use CompressionMethod::{Gzip, Lz4, Zstd};
        let spec = |method, level, workers, long| CompressionSpec { method, level, workers, long };
        for (argument, expected) in [
            ("none", None),
            ("none:0", None),
            ("0", None),
            ("gzip", Some(spec(Gzip, -1, None, None))),
            ("gzip:-1", Some(spec(Gzip, -1, None, None))),
            ("9", Some(spec(Gzip, 9, None, None))),
            ("gzip: +7", Some(spec(Gzip, 7, None, None))),
            ("gzip:level=2,level=3", Some(spec(Gzip, 3, None, None))),
            ("lz4", Some(spec(Lz4, 0, None, None))),
            ("lz4:0", Some(spec(Lz4, 0, None, None))),
            ("lz4:12", Some(spec(Lz4, 12, None, None))),
            ("zstd", Some(spec(Zstd, 3, None, None))),
            ("zstd:-131072", Some(spec(Zstd, -131_072, None, None))),
            ("zstd:level=22,workers=4,long", Some(spec(Zstd, 22, Some(4), Some(true)))),
            ("zstd:long=OFF", Some(spec(Zstd, 3, None, Some(false)))),
            ("zstd:workers=-5", Some(spec(Zstd, 3, Some(-5), None))),
        ] {
            assert_eq!(CompressionRequest::parse(argument).specification(), Ok(expected), "{argument:?}");
        }
    }

    #[test]
    fn refusals_in_postgresqls_words() {
        for (argument, expected) in [
            ("turkey", "unrecognized compression algorithm: \"turkey\""),
            ("GZIP", "unrecognized compression algorithm: \"GZIP\""),
            (
                "gzip:10",
                "compression algorithm \"gzip\" expects a compression level between 1 and 9 (default at -1)",
            ),
            ("99999999999999999999", "between 1 and 9"),
            ("-2", "between 1 and 9"),
            ("lz4:13", "between 1 and 12 (default at 0)"),
            ("zstd:23", "between -131072 and 22 (default at 3)"),
            ("none:1", "\"none\" does not accept a compression level"),
            ("none:workers=1", "\"none\" does not accept a worker count"),
            ("none:long", "\"none\" does not support long-distance mode"),
            ("gzip:workers=3", "\"gzip\" does not accept a worker count"),
            ("lz4:long", "\"lz4\" does not support long-distance mode"),
            ("gzip:", "found empty string where a compression option was expected"),
            ("zstd:level=3,", "found empty string"),
            ("zstd:,level=3", "found empty string"),
            ("zstd:level", "compression option \"level\" requires a value"),
            ("zstd:workers=", "value for compression option \"workers\" must be an integer"),
            ("zstd:level=3x", "must be an integer"),
            ("zstd:long=maybe", "value for compression option \"long\" must be a Boolean value"),
            ("zstd:strong", "unrecognized compression option: \"strong\""),
        ] {
            let refused = CompressionRequest::parse(argument).specification().expect_err(argument);
            assert!(refused.to_string().contains(expected), "{argument:?}: {refused}");
        }
    }
}
