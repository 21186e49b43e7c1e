//! The helper that starts and measures clients: its numbers are the client's and nobody else's.

use std::process::Command;

use serde_json::Value;

/// Runs a shell script through the helper, which says how it ended.
fn measured(script: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let (stdout, stderr) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let output = Command::new(env!("CARGO_BIN_EXE_pgstrata-bench"))
        .arg("measure-one")
        .arg("--stdout")
        .arg(&stdout)
        .arg("--stderr")
        .arg(&stderr)
        .args(["--", "sh", "-c", script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut ending: Value = serde_json::from_slice(&output.stdout).unwrap();
    ending["stdout"] = std::fs::read_to_string(stdout).unwrap().into();
    ending["stderr"] = std::fs::read_to_string(stderr).unwrap().into();
    ending
}

#[test]
fn the_peak_memory_of_whoever_measures_is_not_inherited() {
    // Touched, and alive until the measurement is over.
    let ours = vec![1_u8; 96 << 20];
    let peak = measured("true")["cost"]["peak_memory_bytes"].as_u64().unwrap();
    assert!((200 << 10..32 << 20).contains(&peak), "{peak}");
    assert_eq!(std::hint::black_box(&ours)[ours.len() / 2], 1);
}

#[test]
fn processes_that_the_client_waits_for_are_counted() {
    let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    let cpu = |script: &str| measured(script)["cost"]["user_seconds"].as_f64().unwrap();
    // The shell itself does next to nothing; its background process does everything.
    assert!(cpu(&format!("({spin}) & wait")) > 10.0 * cpu("true"));
}

#[test]
fn endings_and_outputs_are_the_clients() {
    let ending = measured("echo out; echo err >&2; exit 3");
    assert_eq!((&ending["code"], &ending["signal"]), (&Value::from(3), &Value::Null));
    assert_eq!((&ending["stdout"], &ending["stderr"]), (&Value::from("out\n"), &Value::from("err\n")));
    let ending = measured("kill -TERM $$");
    assert_eq!((&ending["code"], &ending["signal"]), (&Value::Null, &Value::from(15)));
}
