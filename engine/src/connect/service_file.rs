//! Connection service files: named groups of settings, `[name]` and `keyword=value` lines.
//!
//! Follows `parseServiceInfo` and `parseServiceFile` of libpq (`fe-connect.c`): the user's file, then the system's;
//! the first group of that name counts; keyword and value touch the equal sign.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::conninfo::Pairs;
use super::keyword;

/// The longest line that libpq takes (its buffer of 1024, less newline and terminator).
const LONGEST_LINE: usize = 1022;
/// No sane service file is larger; a device or a mistaken path must not fill memory.
const LARGEST: u64 = 16 << 20;

/// Where distributions keep what PostgreSQL was built with as `SYSCONFDIR`.
const SYSTEM: &[&str] = &["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/usr/local/pgsql/etc"];

/// Where service files may be.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// The file that was named, in the place of the one in the home folder.
    pub(super) file: Option<PathBuf>,
    pub(super) home: Option<&'a Path>,
    /// `PGSYSCONFDIR`.
    pub(super) system: Option<PathBuf>,
}

/// A service that gives no settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The file that was named is not there or cannot be read.
    #[error("service file \"{}\" not found", .0.display())]
    NoFile(PathBuf),
    /// No group of that name.
    #[error(
        "definition of service \"{0}\" not found\n\
         HINT: services are defined in ~/.pg_service.conf, in the file that PGSERVICEFILE names, or in pg_service.conf \
         in the folder that PGSYSCONFDIR names."
    )]
    NotDefined(String),
    /// A line that libpq does not take either.
    #[error("line {line} too long in service file \"{}\"", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// A line that is no setting.
    #[error("syntax error in service file \"{}\", line {line}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// A service within a service.
    #[error(
        "nested service specifications not supported in service file \"{}\", line {line}",
        file.display()
    )]
    Nested {
        /// The file.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
}

/// The settings of a service; where one is given twice, the first counts.
pub(super) fn look_up(service: &str, places: &Places<'_>) -> Result<Pairs, ServiceError> {
    let own = match (&places.file, places.home) {
        (Some(file), _) => Some(file.clone()),
        (None, home) => home.map(|home| home.join(".pg_service.conf")).filter(|file| file.exists()),
    };
    let system = places
        .system
        .clone()
        .or_else(|| SYSTEM.iter().map(PathBuf::from).find(|folder| folder.join("pg_service.conf").exists()));
    let system = system.map(|folder| folder.join("pg_service.conf")).filter(|file| file.exists());
    for file in [own, system].into_iter().flatten() {
        if let Some(pairs) = read(&file, service)? {
            return Ok(pairs);
        }
    }
    Err(ServiceError::NotDefined(service.to_owned()))
}

fn read(path: &Path, service: &str) -> Result<Option<Pairs>, ServiceError> {
    let missing = |_| ServiceError::NoFile(path.to_owned());
    let file = File::open(path).map_err(missing)?;
    let mut found: Option<Pairs> = None;
    for (at, line) in BufReader::new(file.take(LARGEST)).split(b'\n').enumerate() {
        let (file, line_number) = (path.to_owned(), at + 1);
        let line = line.map_err(missing)?;
        if line.len() > LONGEST_LINE {
            return Err(ServiceError::TooLong { file, line: line_number });
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(group) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            let is_wanted = group.strip_prefix(service).is_some_and(|rest| rest.starts_with(']'));
            found = is_wanted.then(Pairs::new);
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        match line.split_once('=') {
            Some(("service", _)) => return Err(ServiceError::Nested { file, line: line_number }),
            Some((name, value)) => match keyword::find(name) {
                Some(keyword) => pairs.push((keyword, value.to_owned())),
                None => return Err(ServiceError::Syntax { file, line: line_number }),
            },
            None => return Err(ServiceError::Syntax { file, line: line_number }),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn groups() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("services");
        let places = Places { file: Some(file.clone()), home: None, system: Some(folder.path().to_owned()) };
        assert_eq!(look_up("a", &places).unwrap_err(), ServiceError::NoFile(file.clone()));

        let long = format!("[long]\nhost={}\n", "x".repeat(LONGEST_LINE));
        let text = "# services\nstray line before any group\n[ab]\nhost=wrong\n[a]\n  host=right  \n# no\nport=1\n\n\
                    user=u=v\nhost=second\n[a]\nport=2\n[spaced]\nport = 1\n[nested]\nservice=a\n[odd]\nnonsense=1\n\
                    [bare]\nhost\n";
        fs::write(&file, format!("{text}{long}")).unwrap();
        fs::write(folder.path().join("pg_service.conf"), "[system]\nhost=system\n[a]\nhost=hidden\n")
            .unwrap();
        let shown = |service: &str| match look_up(service, &places) {
            Ok(pairs) => {
                let pairs: Vec<_> =
                    pairs.iter().map(|(keyword, value)| format!("{}={value}", keyword.name)).collect();
                pairs.join(" ")
            }
            Err(error) => {
                error.to_string().lines().next().unwrap_or_default().replace(&file.display().to_string(), "F")
            }
        };
        for (service, expected) in [
            ("a", "host=right port=1 user=u=v host=second"),
            ("ab", "host=wrong"),
            ("spaced", "syntax error in service file \"F\", line 15"),
            ("nested", "nested service specifications not supported in service file \"F\", line 17"),
            ("odd", "syntax error in service file \"F\", line 19"),
            ("bare", "syntax error in service file \"F\", line 21"),
            ("long", "line 23 too long in service file \"F\""),
        ] {
            assert_eq!(shown(service), expected, "{service}");
        }
        // The long line stands in the way of what the system's file has, as in libpq.
        assert_eq!(shown("system"), "line 23 too long in service file \"F\"");
        fs::write(&file, text).unwrap();
        assert_eq!(shown("system"), "host=system");
        assert_eq!(shown("none"), "definition of service \"none\" not found");
    }
}
