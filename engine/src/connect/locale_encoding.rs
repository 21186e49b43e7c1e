//! PostgreSQL's name for the encoding of the user's locale, for `client_encoding=auto`.
//!
//! Reads the locale's name from its variables instead of asking the C library, whose locale this program never
//! sets. The names follow `encoding_match_list` of `src/port/chklocale.c`.

use std::ffi::OsString;

/// Encodings as locales spell them, without case, hyphens and underscores, and as PostgreSQL names them.
const ENCODINGS: &[(&str, &str)] = &[
    ("utf8", "UTF8"),
    ("iso88591", "LATIN1"),
    ("iso88592", "LATIN2"),
    ("iso88593", "LATIN3"),
    ("iso88594", "LATIN4"),
    ("iso88595", "ISO_8859_5"),
    ("iso88596", "ISO_8859_6"),
    ("iso88597", "ISO_8859_7"),
    ("iso88598", "ISO_8859_8"),
    ("iso88599", "LATIN5"),
    ("iso885910", "LATIN6"),
    ("iso885913", "LATIN7"),
    ("iso885914", "LATIN8"),
    ("iso885915", "LATIN9"),
    ("iso885916", "LATIN10"),
    ("koi8r", "KOI8R"),
    ("koi8u", "KOI8U"),
    ("cp1251", "WIN1251"),
    ("cp1252", "WIN1252"),
    ("eucjp", "EUC_JP"),
    ("euckr", "EUC_KR"),
    ("euctw", "EUC_TW"),
    ("gb2312", "EUC_CN"),
    ("gbk", "GBK"),
    ("gb18030", "GB18030"),
    ("big5", "BIG5"),
    ("sjis", "SJIS"),
];

/// The encoding's name, or the locale's own spelling where it is not known.
pub(super) fn encoding_of_locale(
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<&'static str, String> {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| variable(name).filter(|value| !value.is_empty()))
        .unwrap_or_default();
    let locale = locale.to_string_lossy();
    if matches!(&*locale, "" | "C" | "POSIX") {
        return Ok("SQL_ASCII");
    }
    let Some((_, encoding)) = locale.split_once('.') else { return Err(locale.into_owned()) };
    let encoding = encoding.split('@').next().unwrap_or_default();
    let plain: String =
        encoding.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let known = ENCODINGS.iter().find(|(spelling, _)| *spelling == plain);
    known.map(|(_, name)| *name).ok_or_else(|| encoding.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales() {
        for (variables, encoding) in [
            (&[][..], Ok("SQL_ASCII")),
            (&[("LANG", "C")], Ok("SQL_ASCII")),
            (&[("LANG", "C.UTF-8")], Ok("UTF8")),
            (&[("LANG", "en_GB.utf8"), ("LC_CTYPE", "de_DE.ISO-8859-15@euro")], Ok("LATIN9")),
            (&[("LANG", "C"), ("LC_ALL", "ja_JP.eucJP")], Ok("EUC_JP")),
            (&[("LC_ALL", ""), ("LANG", "x.UTF-8")], Ok("UTF8")),
            (&[("LANG", "de_DE")], Err("de_DE".to_owned())),
            (&[("LANG", "x.wtf-8")], Err("wtf-8".to_owned())),
        ] {
            let look = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            };
            assert_eq!(encoding_of_locale(&look), encoding, "{variables:?}");
        }
    }
}
