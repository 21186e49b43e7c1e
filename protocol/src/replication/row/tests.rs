use super::*;

fn result(columns: &[&str], rows: &[&[Option<&[u8]>]]) -> ResultSet {
    ResultSet {
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
        rows: rows
            .iter()
            .map(|row| row.iter().map(|value| value.map(Bytes::copy_from_slice)).collect())
            .collect(),
    }
}

const NULL: Option<&[u8]> = None;

#[test]
fn identify_system() {
    let columns = ["systemid", "timeline", "xlogpos", "dbname"];
    let good: &[Option<&[u8]>] = &[Some(b"18446744073709551615"), Some(b"3"), Some(b"A/B"), NULL];
    assert_eq!(
        IdentifySystem::from_result(&result(&columns, &[good])),
        Ok(IdentifySystem {
            system_identifier: u64::MAX,
            timeline: TimelineId(3),
            flushed: Lsn(0xA_0000_000B),
            database: None
        })
    );
    let in_database = result(&columns, &[&[Some(b"1"), Some(b"1"), Some(b"0/0"), Some(b"db")]]);
    assert_eq!(IdentifySystem::from_result(&in_database).unwrap().database.as_deref(), Some("db"));
    for (broken, expected) in [
        (result(&columns, &[]), "has 0 rows, expected one"),
        (result(&columns, &[good, good]), "has 2 rows, expected one"),
        (
            result(&columns[1..], &[&good[1..]]),
            "has no column \"systemid\", found [\"timeline\", \"xlogpos\", \"dbname\"]",
        ),
        (result(&columns, &[&good[..2]]), "expected more, each with all columns"),
        (
            result(&columns, &[&[NULL, good[1], good[2], NULL]]),
            "row 0, column \"systemid\": found NULL, expected a 64-bit number",
        ),
        (
            result(&columns, &[&[Some(b"-1"), good[1], good[2], NULL]]),
            "column \"systemid\": found \"-1\", expected a 64-bit number",
        ),
        (result(&columns, &[&[good[0], Some(b"x"), good[2], NULL]]), "column \"timeline\": found \"x\""),
        (
            result(&columns, &[&[good[0], good[1], Some(b"\xff"), NULL]]),
            "column \"xlogpos\": found \"\u{fffd}\"",
        ),
        (
            result(&columns, &[&[good[0], good[1], Some(&[b'x'; 999]), NULL]]),
            "expected a log position such as 16/B374D848",
        ),
    ] {
        let error = IdentifySystem::from_result(&broken).unwrap_err().to_string();
        assert!(error.starts_with("the server's answer to IDENTIFY_SYSTEM"), "{error}");
        assert!(error.contains(expected) && error.len() < 250, "{error}");
    }
}

#[test]
fn show() {
    assert_eq!(show_value(&result(&["wal_segment_size"], &[&[Some(b"16MB")]])).as_deref(), Ok("16MB"));
    for broken in [
        result(&["x"], &[]),
        result(&["x"], &[&[NULL]]),
        result(&["x"], &[&[Some(b"\xff")]]),
        result(&["x", "y"], &[&[Some(b"1"), Some(b"2")]]),
        result(&[], &[&[]]),
    ] {
        assert!(show_value(&broken).is_err(), "{broken:?}");
    }
}

#[test]
fn slots() {
    let columns = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"];
    let created = result(&columns, &[&[Some(b"s"), Some(b"0/0"), NULL, NULL]]);
    let expected = CreatedSlot { name: "s".into(), consistent_point: Lsn::INVALID };
    assert_eq!(CreatedSlot::from_result(&created), Ok(expected));
    assert!(CreatedSlot::from_result(&result(&columns, &[&[NULL; 4]])).is_err());

    let columns = ["slot_type", "restart_lsn", "restart_tli"];
    let slot =
        |lsn, tli| ReplicationSlot { slot_type: "physical".into(), restart_lsn: lsn, restart_timeline: tli };
    for (row, expected) in [
        ([NULL, NULL, NULL], None),
        (
            [Some(&b"physical"[..]), Some(b"1/2"), Some(b"3")],
            Some(slot(Some(Lsn(0x1_0000_0002)), Some(TimelineId(3)))),
        ),
        ([Some(b"physical"), NULL, NULL], Some(slot(None, None))),
    ] {
        assert_eq!(ReplicationSlot::from_result(&result(&columns, &[&row])), Ok(expected));
    }
    let broken = result(&columns, &[&[Some(b"physical"), Some(b"?"), NULL]]);
    assert!(ReplicationSlot::from_result(&broken).is_err());
}

#[test]
fn backup_position_and_timeline_end() {
    let position = result(&["recptr", "tli"], &[&[Some(b"0/2000028"), Some(b"1")]]);
    assert_eq!(
        BackupPosition::from_result(&position),
        Ok(BackupPosition { lsn: Lsn(0x200_0028), timeline: TimelineId(1) })
    );
    assert!(
        BackupPosition::from_result(&result(&["recptr", "tli"], &[&[Some(b"0/2000028"), NULL]])).is_err()
    );

    let columns = ["next_tli", "next_tli_startpos"];
    let end = result(&columns, &[&[Some(b"2"), Some(b"0/3000000")]]);
    assert_eq!(
        TimelineEnd::from_result(&end),
        Ok(TimelineEnd { next: TimelineId(2), start: Lsn(0x300_0000) })
    );
    assert!(TimelineEnd::from_result(&result(&columns, &[])).is_err());
}

#[test]
fn tablespaces() {
    let columns = ["spcoid", "spclocation", "size"];
    let row = |oid, location: Option<&[u8]>, size_kb| TablespaceRow {
        oid,
        location: location.map(<[u8]>::to_vec),
        size_kb,
    };
    let space: &[Option<&[u8]>] = &[Some(b"16385"), Some(b"/sp\xff ace"), Some(b"7")];
    let base: &[Option<&[u8]>] = &[NULL, NULL, Some(b"12345")];
    assert_eq!(
        TablespaceRow::from_result(&result(&columns, &[space, base])),
        Ok(vec![row(Some(16385), Some(b"/sp\xff ace"), Some(7)), row(None, None, Some(12345))])
    );
    assert_eq!(TablespaceRow::from_result(&result(&columns, &[&[NULL; 3]])), Ok(vec![row(None, None, None)]));
    for (broken, expected) in [
        (result(&columns, &[]), "has 0 rows, expected one for the data directory"),
        (result(&columns, &[base, base]), "has 2 rows, expected one for the data directory"),
        (result(&columns, &[&[Some(b"1"), NULL, NULL], base]), "row 0, column \"spclocation\": found NULL"),
        (result(&columns, &[base, &[Some(b"4294967296"), space[1], NULL]]), "row 1, column \"spcoid\""),
        (result(&columns, &[&[NULL, NULL, Some(b"-1")]]), "column \"size\": found \"-1\""),
        (result(&columns[..2], &[&base[..2]]), "no column \"size\""),
    ] {
        let error = TablespaceRow::from_result(&broken).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn timeline_history_file() {
    let columns = ["filename", "content"];
    let file = result(&columns, &[&[Some(b"00000002.history"), Some(b"1\t0/3\t\xff\n")]]);
    assert_eq!(
        TimelineHistoryFile::from_result(&file),
        Ok(TimelineHistoryFile {
            name: "00000002.history".into(),
            content: Bytes::from_static(b"1\t0/3\t\xff\n")
        })
    );
    assert!(TimelineHistoryFile::from_result(&result(&columns, &[&[Some(b"x"), NULL]])).is_err());
    assert!(TimelineHistoryFile::from_result(&result(&columns, &[&[Some(b"\xff"), Some(b"")]])).is_err());
}
