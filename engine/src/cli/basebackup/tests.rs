use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
#[command(disable_help_flag = true, disable_version_flag = true)]
struct Program {
    #[command(flatten)]
    args: BaseBackupArgs,
}

fn resolve(line: &str) -> anyhow::Result<BaseBackupConfig> {
    Program::try_parse_from(std::iter::once("x").chain(line.split_whitespace()))?.args.resolve()
}

#[test]
fn resolves_what_operators_write() {
    let config =
        resolve("-D /b -Ft -Xf -c FAST -r 2M -l night -s 0 -n -N -h db -p 5433 -U rep").expect("valid");
    assert!(matches!(config.destination, Destination::Tar { ref path } if path == Path::new("/b")));
    assert_eq!(config.wal, WalMethod::Fetch);
    assert!(config.fast_checkpoint && !config.clean && !config.sync);
    assert_eq!(config.max_rate_kb, Some(2048));
    let config = resolve("-D - -Ft -X none").expect("valid");
    assert!(matches!(config.destination, Destination::Stdout));
    // In plain format it is a name like any other.
    let config = resolve("-D -").expect("valid");
    assert!(matches!(config.destination, Destination::Directory { ref path, .. } if path.ends_with("-")));
    let config =
        resolve("-D /b -Ft -Xf -c FAST -r 2M -l night -s 0 -n -N -h db -p 5433 -U rep").expect("valid");
    assert_eq!(config.status_interval, Duration::ZERO);
    let config = resolve("-D /b -S s -C --waldir=/w -T /a=/b -R --manifest-checksums sha256").expect("valid");
    assert_eq!(config.wal, WalMethod::Stream(SlotChoice::Named { name: "s".into(), create: true }));
    assert_eq!(config.manifest.and_then(|m| m.checksums), Some(ChecksumAlgorithm::Sha256));
}

#[test]
fn refuses_by_name() {
    for (line, expected) in [
        ("", "must specify output directory or backup target"),
        ("-D /b -t blackhole -X none", "cannot specify both output directory and backup target"),
        ("-t blackhole -Ft -X none", "cannot specify both format and backup target"),
        ("-t blackhole", "WAL cannot be streamed when a backup target is specified"),
        ("-t blackhole -X none -Z client-gzip", "client-side compression is not possible"),
        ("-t blackhole -X none --waldir /w", "WAL directory location cannot be specified along"),
        ("-t blackhole -X none -R", "recovery configuration cannot be written"),
        ("-t client", "must specify output directory or backup target"),
        ("-D /b -z", "only tar mode backups can be compressed"),
        ("-D /b -Z client-zstd", "only tar mode backups can be compressed"),
        ("-D /b -Ft -Z gzip:10", "expects a compression level between 1 and 9"),
        ("-D /b -Ft -Z -2", "expects a compression level between 1 and 9"),
        ("-D /b -Ft -Z brotli", "unrecognized compression algorithm: \"brotli\""),
        ("-D /b -Z server-brotli", "unrecognized compression algorithm: \"brotli\""),
        ("-D /b -C", "HINT: Try \"pgstrata basebackup --help\" for more information."),
        ("-D /b -Ft -R -Z server-gzip", "cannot add to an archive that the server compresses"),
        ("--discard -Ft -z", "nothing is kept"),
        ("--discard -C -S s", "no WAL is kept"),
        ("--discard -S s", "no WAL is kept"),
        ("--discard --no-slot", "no WAL is kept"),
        ("-D /b --sync-method=often", "unrecognized sync method: often"),
        ("-D /b -F x", "invalid output format"),
        ("-D /b -X maybe", "invalid wal-method"),
        ("-D /b -c soon", "invalid checkpoint argument"),
        ("-D /b -S s -X fetch", "only be used with WAL streaming"),
        ("-D /b -S s --no-slot", "--no-slot cannot be used with slot name"),
        ("-D /b -C", "--create-slot needs a slot"),
        ("-D /b -Ft --waldir /w", "only be specified in plain mode"),
        ("-D /b --waldir w", "must be an absolute path"),
        ("-D /b -T /a", "must be \"OLDDIR=NEWDIR\""),
        ("-D /b -T /a=/b=/c", "multiple \"=\" signs"),
        ("-D /b -T a=/b", "old directory is not an absolute path"),
        ("-D /b -r 31", "out of range"),
        ("-D /b -r x", "not a valid value"),
        ("-D /b -r 5kk", "invalid --max-rate unit: \"kk\""),
        ("-D /b -r 1e10", "exceeds integer range"),
        ("-D /b -s x -C", "invalid value \"x\" for option -s/--status-interval"),
        ("-D /b -s -1", "-s/--status-interval must be in range 0..2147483"),
        ("-t blackhole -X none -T bad", "invalid tablespace mapping format \"bad\""),
        ("-D /b -P --no-estimate-size", "--progress and --no-estimate-size are incompatible options"),
        ("-D /b --no-manifest --manifest-checksums none", "incompatible"),
        ("-D /b --no-manifest --manifest-force-encode", "incompatible"),
        ("-D /b --manifest-checksums md5", "unrecognized checksum algorithm"),
        ("-D - -Ft", "cannot stream write-ahead logs in tar mode to stdout"),
        ("-D - -Ft -X none --json", "both write to standard output"),
        ("-D - -Ft -X fetch -Z server-gzip", "cannot inject manifest into a compressed tar file"),
    ] {
        let refused = resolve(line).expect_err(line).to_string();
        assert!(refused.contains(expected), "{line}: {refused}");
    }
}

#[test]
fn who_compresses_and_who_keeps() {
    let compression = |line: &str| resolve(line).expect(line).compression;
    let client = |argument: &str| {
        let spec = CompressionRequest::parse(argument).specification().expect("valid");
        spec.map(BackupCompression::Client)
    };
    for (line, expected) in [
        ("-D /b", None),
        ("-D /b -Z none", None),
        ("-D /b -Z 0", None),
        ("-D /b -Z server-none", None),
        ("-D /b -Ft -z", client("gzip")),
        ("-D /b -Ft -Z 7 -z", client("gzip")),
        ("-D /b -Ft -z -Z lz4:3", client("lz4:3")),
        ("-D /b -Ft -Z gzip -Z zstd:workers=2", client("zstd:workers=2")),
        ("-D /b -Ft -Z -1", client("gzip")),
        ("-D /b -t client -Ft -Z client-zstd:long", client("zstd:long")),
    ] {
        assert_eq!(compression(line), expected, "{line}");
    }
    let server = BackupCompression::Server {
        method: CompressionMethod::Zstd,
        detail: Some("level=99,unknown".into()),
    };
    assert_eq!(compression("-D /b -Z server-zstd:level=99,unknown"), Some(server.clone()));
    assert_eq!(compression("--discard -Z server-zstd:level=99,unknown"), Some(server));

    let config = resolve("-t server:/a:b -X fetch -Z gzip:3 --sync-method=syncfs").expect("valid");
    let Destination::Target { name, detail, compression } = &config.destination else { panic!("{config:?}") };
    assert_eq!((name.as_str(), detail.as_deref()), ("server", Some("/a:b")));
    let asked = ServerCompression { method: "gzip".into(), detail: Some("3".into()) };
    assert_eq!(compression.as_ref(), Some(&asked));
    assert_eq!(config.asked_compression(), Some(asked));
    assert_eq!(config.sync_method, SyncMethod::Syncfs);
    assert_eq!(resolve("-t blackhole -X none").expect("valid").asked_compression(), None);
}

#[test]
fn mapping_escapes() {
    let (old, new) = parse_mapping(&OsString::from(r"/a\=b=/c\=d")).expect("valid");
    assert_eq!((old, new), (PathBuf::from("/a=b"), PathBuf::from("/c=d")));
}
