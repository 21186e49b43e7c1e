//! Command lines that are refused before any server is asked, beside the stock tools of 15, 17 and 18: the same exit
//! status, the same words, nothing made. Ours may add hints, and nothing else.

use std::fs;
use std::path::Path;

use pgstrata_tests::Scratch;

use crate::beside;

/// Lines of `pg_basebackup`. TARGET is a folder that does not exist; each word is separated by one space, so that two of
/// them make an empty word. With what version on the stock tool knows the option.
const BASE_BACKUP: &[(u32, &str)] = &[
    // What getopt_long refuses.
    (15, "--nonsense"),
    (15, "--nonsense=3 -y"),
    (15, "-y"),
    (15, "-vy -D TARGET"),
    (15, "-D"),
    (15, "-vD"),
    (15, "--pgdata"),
    (15, "--pgdat"),
    (15, "-D TARGET --no-sync=1"),
    (15, "-D TARGET --no-syn=1"),
    (15, "-D TARGET --label"),
    (15, "-D TARGET --help"),
    (15, "-D TARGET --hel"),
    (15, "-D TARGET --version"),
    (15, "-D TARGET -V"),
    (15, "-P -? -D TARGET"),
    (15, "--v"),
    (15, "--no"),
    (15, "--no-s"),
    (15, "--manifest"),
    (15, "--h"),
    (15, "--no-p"),
    (15, "-l -? -D TARGET -F x"),
    (15, "-D TARGET extra"),
    (15, "-D TARGET extra more"),
    (15, "extra"),
    (15, "extra --nonsense"),
    (15, "-D TARGET -- -x"),
    (15, "-D TARGET -d sslmode=disable host=/nonexistent"),
    // Values.
    (15, "-D TARGET -F x"),
    (15, "-D TARGET -F plains"),
    (15, "-D TARGET -F T"),
    (15, "-D TARGET -X bad"),
    (15, "-D TARGET -X S"),
    (15, "-D TARGET -c bad"),
    (15, "-D TARGET -c Bad"),
    (15, "-D TARGET --chec=bad"),
    (17, "-D TARGET --sync-method=often"),
    (17, "-D TARGET --sync-method"),
    (15, "-D TARGET -r abc"),
    (15, "-D TARGET -r 0"),
    (15, "-D TARGET -r -5"),
    (15, "-D TARGET -r 31"),
    (15, "-D TARGET -r 31k"),
    (15, "-D TARGET -r 1025M"),
    (15, "-D TARGET -r 1048577"),
    (15, "-D TARGET -r 99999999999999"),
    (15, "-D TARGET -r 1e10"),
    (15, "-D TARGET -r 5G"),
    (15, "-D TARGET -r 5kk"),
    (15, "-D TARGET --max-rate="),
    (15, "-D TARGET -s x"),
    (15, "-D TARGET -s 5x"),
    (15, "-D TARGET -s -1"),
    (15, "-D TARGET -s 2147484"),
    (15, "-D TARGET -s 99999999999"),
    (15, "-D TARGET --status-interval=1.5"),
    (15, "-D TARGET -T foo"),
    (15, "-D TARGET -T a=/b"),
    (15, "-D TARGET -T /a=b"),
    (15, "-D TARGET -T =/b"),
    (15, "-D TARGET -T /a="),
    (15, "-D TARGET -T ="),
    (15, "-D TARGET -T /a=/b=/c"),
    (15, "-D TARGET -T /a\\=/b"),
    (15, "-D TARGET -Ft -T bad"),
    (15, "-t blackhole -X none -T bad"),
    // Values go before what does not go together.
    (15, "-D TARGET -C -F x"),
    (15, "-D TARGET -C -X bad"),
    (15, "-D TARGET -C -c bad"),
    (15, "-D TARGET -C -r bad"),
    (15, "-D TARGET -C -s bad"),
    (15, "-D TARGET -C -T bad"),
    // What does not go together, or is missing.
    (15, ""),
    (15, "-Ft -z"),
    (15, "-t client"),
    (15, "-t client -D TARGET -C"),
    (15, "-D TARGET -t blackhole -X none"),
    (15, "-t blackhole -Ft -X none"),
    (15, "-t blackhole -Fp -X none"),
    (15, "-t blackhole -Fp -D TARGET"),
    (15, "-t blackhole"),
    (15, "-t server:/x -X stream"),
    (15, "-t blackhole -X none -Z client-gzip"),
    (15, "-t blackhole -X none -Z client-bogus"),
    (15, "-t blackhole -Z client-gzip"),
    (15, "-t blackhole -X none --waldir /w"),
    (15, "-t blackhole -X fetch -S s"),
    (15, "-t blackhole -X none -C"),
    (15, "-D - -Ft"),
    (15, "-D - -Ft -X stream"),
    (15, "-D - -Ft -S s"),
    (15, "-D - -Ft -X none --waldir /w"),
    (15, "-D TARGET -S s -X none"),
    (15, "-D TARGET -S s -X fetch"),
    (15, "-D TARGET -S s --no-slot"),
    (15, "-D TARGET -C"),
    (15, "-D TARGET -C -X none"),
    (15, "-D TARGET -C --no-slot"),
    (15, "-D TARGET -C -S s --no-slot"),
    (15, "-D TARGET -C -S s -X none"),
    (15, "-D TARGET -Ft --waldir /w"),
    (15, "-D TARGET -Ft --waldir w"),
    (15, "-D TARGET --waldir w"),
    (15, "-D TARGET -P --no-estimate-size"),
    (15, "-D TARGET --no-manifest --manifest-checksums none"),
    (15, "-D TARGET --no-manifest --manifest-checksums bogus"),
    (15, "-D TARGET --no-manifest --manifest-force-encode"),
    (15, "-D TARGET --no-manifest --manifest-force-encode --manifest-checksums none"),
    (15, "-D TARGET -C -P --no-estimate-size"),
    // Compression.
    (15, "-D TARGET -z"),
    (15, "-D TARGET -z -C"),
    (15, "-D TARGET -Z gzip"),
    (15, "-D TARGET -Z client-zstd"),
    (15, "-D TARGET -Z 5"),
    (15, "-D TARGET -Z none:3"),
    (15, "-D TARGET -Ft -Z none:3"),
    (15, "-D TARGET -Ft -Z 10"),
    (15, "-D TARGET -Ft -Z -2"),
    (15, "-D TARGET -Ft -Z brotli"),
    (15, "-D TARGET -Ft -Z client-brotli"),
    (15, "-D TARGET -Ft -Z :1"),
    (15, "-D TARGET -Ft -Z gzip:10"),
    (17, "-D TARGET -Ft -Z gzip:0"),
    (15, "-D TARGET -Ft -Z gzip:"),
    (15, "-D TARGET -Ft -Z gzip:level"),
    (15, "-D TARGET -Ft -Z gzip:level="),
    (15, "-D TARGET -Ft -Z gzip:level=x"),
    (15, "-D TARGET -Ft -Z gzip:level=1,"),
    (15, "-D TARGET -Ft -Z gzip:,level=1"),
    (15, "-D TARGET -Ft -Z gzip:workers=2"),
    (17, "-D TARGET -Ft -Z gzip:long"),
    (15, "-D TARGET -Ft -Z lz4:13"),
    (15, "-D TARGET -Ft -Z lz4:workers=1"),
    (15, "-D TARGET -Ft -Z zstd:23"),
    (15, "-D TARGET -Ft -Z zstd:workers=x"),
    (15, "-D TARGET -Ft -Z zstd:bogus=1"),
    (17, "-D TARGET -Ft -Z zstd:long=maybe"),
    // Connections.
    (15, "-D TARGET -d nokey=1"),
    (15, "-D TARGET -d nokey"),
    (15, "-D TARGET -d sslmode=bogus"),
    (15, "-D TARGET -d target_session_attrs=bad"),
    (15, "-D TARGET -d service=nothere"),
    (15, "-D TARGET -p abc -h 127.0.0.1"),
    (15, "-D TARGET -p 99999 -h /nonexistent"),
    (15, "-D TARGET -h /nonexistent -p 1"),
    (15, "-D TARGET -h 127.0.0.1 -p 1"),
    (15, "-D TARGET -h no-such-host.invalid"),
    (15, "-D TARGET -d host=/nonexistent,/other"),
    (17, "-D TARGET -Ft -Z 0 -s 2147483"),
    (15, "-t blackhole -X none -z"),
    (15, "-t blackhole -X none -Z bogus:1"),
];

/// Lines of `pg_receivewal`.
const RECEIVE_WAL: &[(u32, &str)] = &[
    (15, ""),
    (15, "--nonsense"),
    (15, "-y"),
    (15, "-D"),
    (15, "-D TARGET extra"),
    (15, "-D TARGET --help"),
    (15, "-D TARGET --no=1"),
    (15, "-D TARGET --no-sync=1"),
    (15, "-D TARGET --create-slot --drop-slot"),
    (15, "--create-slot"),
    (15, "-D TARGET --drop-slot"),
    (15, "-D TARGET --synchronous --no-sync"),
    (15, "-D TARGET -E x"),
    (15, "-D TARGET --endpos=0"),
    (15, "-D TARGET -s x"),
    (15, "-D TARGET -s -1"),
    (15, "-D TARGET --status-interval=2147484"),
    (15, "-D TARGET -Z brotli"),
    (15, "-D TARGET -Z client-gzip"),
    (15, "-D TARGET -Z gzip:10"),
    (15, "-D TARGET -Z 12"),
    (15, "-D TARGET -Z lz4:level"),
    (15, "-D TARGET -Z gzip:workers=1"),
    (15, "-D TARGET -Z none:1"),
    (15, "-D TARGET -n"),
];

/// Lines of `pg_verifybackup`. EMPTY is a folder with one file in it, that is no backup.
const VERIFY_BACKUP: &[(u32, &str)] = &[
    (15, ""),
    (15, "--nonsense"),
    (15, "-z EMPTY"),
    (15, "-m"),
    (15, "--ignore"),
    (15, "-q --help"),
    (15, "-q --version"),
    (15, "-q -V"),
    (15, "-q -?"),
    (15, "--exit=1 EMPTY"),
    (15, "/a /b"),
    (15, "-- EMPTY -q"),
    (18, "-F x EMPTY"),
    (18, "-F x"),
    (18, "-F"),
    (17, "-P -q EMPTY"),
    (17, "EMPTY -q -P"),
    (15, "EMPTY"),
    (15, "-n EMPTY"),
    (15, "-m /nonexistent/manifest EMPTY"),
    (15, "-w /nonexistent EMPTY"),
];

#[test]
fn refused_command_lines_are_refused_alike() {
    let scratch = Scratch::new();
    let ours = beside::links(&scratch);
    let target = scratch.join("copy").display().to_string();
    let empty = scratch.join("empty").display().to_string();
    fs::create_dir(&empty).unwrap();
    fs::write(format!("{empty}/file"), "").unwrap();
    let stock = beside::stock();
    let tables =
        [("pg_basebackup", BASE_BACKUP), ("pg_receivewal", RECEIVE_WAL), ("pg_verifybackup", VERIFY_BACKUP)];
    let lines = tables.into_iter().flat_map(|(name, lines)| lines.iter().map(move |line| (name, line)));
    let mut different = Vec::new();
    for (name, (since, line)) in lines {
        let words: Vec<&str> = line
            .split(' ')
            .filter(|_| !line.is_empty())
            .map(|word| match word {
                "TARGET" => target.as_str(),
                "EMPTY" => empty.as_str(),
                word => word,
            })
            .collect();
        let finished = beside::tool(&ours, name).args(&words).run();
        assert_eq!(finished.status.code(), Some(1), "{name} {line}: {finished}");
        assert!(!Path::new(&target).exists(), "{name} {line}");
        let [out, err] = beside::said(&finished, &ours);
        assert!(err.starts_with(&format!("{name}: ")) && out.is_empty(), "{name} {line}: {finished}");
        for (major, stock) in stock.iter().filter(|(major, _)| major >= since) {
            let theirs = beside::tool(stock.bin_dir(), name).args(&words).run();
            assert_eq!(theirs.status.code(), Some(1), "{name} {line}: {theirs}");
            let [their_out, their_err] = beside::said(&theirs, stock.bin_dir());
            assert_eq!(their_out, out, "{name} {line}");
            let unsaid = beside::unsaid(&their_err, &err);
            if !unsaid.is_empty() {
                different.push(format!("{major}: {name} {line}\n    {}", unsaid.join("\n    ")));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
