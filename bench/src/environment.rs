//! What a measurement was taken on. Numbers without it say nothing.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use pgstrata::postmaster::ServerProgram;
use serde::Serialize;

use crate::device::FileSystem;
use crate::output::giga;
use crate::program::Program;

/// Machine, system and programs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Environment {
    /// Vendor and product, or that it is a virtual machine.
    pub(crate) machine: String,
    /// The processor's model.
    pub(crate) processor: String,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Main memory.
    pub(crate) memory_bytes: u64,
    /// Name, release and architecture.
    pub(crate) kernel: String,
    /// What clusters and copies lie on.
    pub(crate) file_system: FileSystem,
    /// Version and place of the server and the rival.
    pub(crate) postgresql: String,
    /// What the program under test says it is.
    pub(crate) pgstrata: String,
    /// The load averages when measuring began (proc_loadavg(5)): on a busy machine numbers are noise.
    pub(crate) load_average: String,
    /// When measuring began, in seconds since 1970.
    pub(crate) unix_time: u64,
}

impl Environment {
    /// Of this machine, with everything in `place`.
    pub(crate) fn of(place: &Path, server: &ServerProgram, program: &Program) -> anyhow::Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let system = rustix::system::uname();
        let kernel =
            [system.sysname(), system.release(), system.machine()].map(|text| text.to_string_lossy());
        Ok(Self {
            machine: machine(
                &read("/sys/class/dmi/id/sys_vendor"),
                &read("/sys/class/dmi/id/product_name"),
                &cpuinfo,
            ),
            processor: field(&cpuinfo, "model name").unwrap_or(std::env::consts::ARCH).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory(&read("/proc/meminfo")),
            kernel: kernel.join(" "),
            file_system: FileSystem::of(place)?,
            postgresql: server.to_string(),
            pgstrata: program.version.clone(),
            load_average: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        })
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileSystem { kind, options, device } = &self.file_system;
        let cores = if self.cores == 1 { "core" } else { "cores" };
        let (processor, memory) = (&self.processor, giga(self.memory_bytes));
        writeln!(
            f,
            "- machine: {}; {processor}, {} {cores}, {memory:.1} GB memory",
            self.machine, self.cores
        )?;
        writeln!(f, "- kernel: {}", self.kernel)?;
        writeln!(f, "- file system: {kind} on {device}, {options}")?;
        writeln!(f, "- server and rival: {}", self.postgresql)?;
        writeln!(f, "- program under test: {}", self.pgstrata)?;
        writeln!(f, "- load average at the start: {}", self.load_average)
    }
}

fn machine(vendor: &str, product: &str, cpuinfo: &str) -> String {
    let named = [vendor.trim(), product.trim()].into_iter().filter(|text| !text.is_empty());
    let named = named.collect::<Vec<_>>().join(" ");
    let flags = field(cpuinfo, "flags").unwrap_or_default();
    match (named.is_empty(), flags.split(' ').any(|flag| flag == "hypervisor")) {
        (false, true) => format!("{named} (virtual)"),
        (false, false) => named,
        (true, true) => "virtual machine".to_owned(),
        (true, false) => "unnamed machine".to_owned(),
    }
}

/// A field of the first processor.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

/// `MemTotal` of proc_meminfo(5), in bytes.
fn memory(meminfo: &str) -> u64 {
    let total = field(meminfo, "MemTotal").and_then(|value| value.strip_suffix(" kB"));
    total.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_named_as_well_as_they_can_be() {
        let (guest, host) = ("flags\t\t: fpu hypervisor sse\n", "model name\t: Z\nflags\t\t: fpu sse\n");
        for (vendor, product, cpuinfo, expected) in [
            ("Dell Inc.\n", "R650\n", host, "Dell Inc. R650"),
            ("QEMU\n", "", guest, "QEMU (virtual)"),
            ("", "", guest, "virtual machine"),
            ("", "", host, "unnamed machine"),
            ("", "", "", "unnamed machine"),
        ] {
            assert_eq!(machine(vendor, product, cpuinfo), expected);
        }
        assert_eq!(field(host, "model name"), Some("Z"));
        assert_eq!(field(guest, "model name"), None);
    }

    #[test]
    fn memory_is_read_in_kibibytes() {
        assert_eq!(memory("MemTotal:       24684084 kB\nMemFree: 1 kB\n"), 24_684_084 * 1024);
        assert_eq!(memory(""), 0);
    }
}
