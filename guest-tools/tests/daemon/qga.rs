//! The QEMU guest agent's protocol, spoken by a client that others wrote (the qapi crates), and byte for byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use qapi::qga;

use crate::harness::{Guest, until};

/// A daemon with a door, and the folder that the door is in.
fn guest(policy: &str) -> (Guest, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("qga").display());
    (Guest::start_with(policy, &["--qga", &address]), folder)
}

fn dial(folder: &tempfile::TempDir) -> UnixStream {
    let stream = until("the door is open", || UnixStream::connect(folder.path().join("qga")).ok());
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn say(stream: &mut UnixStream, bytes: &[u8]) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    let mut line = Vec::new();
    BufReader::new(&*stream).read_until(b'\n', &mut line).unwrap();
    line
}

#[test]
fn a_client_that_others_wrote_is_served() {
    let (_guest, folder) = guest("");
    let stream = dial(&folder);
    let mut client = qapi::Qga::new(qapi::Stream::new(BufReader::new(stream.try_clone().unwrap()), stream));
    client.guest_sync(1_234_567_890).unwrap();
    client.execute(&qga::guest_ping {}).unwrap();
    let info = client.execute(&qga::guest_info {}).unwrap();
    let shutdown = info.supported_commands.iter().find(|command| command.name == "guest-shutdown").unwrap();
    // What only the port of the VMM lets through.
    assert!(!shutdown.enabled && !shutdown.success_response);
    let name = client.execute(&qga::guest_get_host_name {}).unwrap().host_name;
    assert_eq!(name, nix::unistd::gethostname().unwrap().to_string_lossy());
    let os = client.execute(&qga::guest_get_osinfo {}).unwrap();
    assert_eq!(os.machine.unwrap(), std::env::consts::ARCH);
    client.execute(&qga::guest_get_fsinfo {}).unwrap();
    client.execute(&qga::guest_get_users {}).unwrap();
    client.execute(&qga::guest_network_get_interfaces {}).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let told = client.execute(&qga::guest_get_time {}).unwrap();
    assert!(u128::try_from(told).unwrap().abs_diff(now.as_nanos()) < 60_000_000_000, "{told}");
    // This daemon stands beside a machine that is not its own: it leaves that one's clock alone.
    assert!(client.execute(&qga::guest_set_time { time: Some(1) }).is_err());
    assert!(client.execute(&qga::guest_shutdown { mode: None }).is_err());
}

#[test]
fn the_bytes_are_qemus_own() {
    let (_guest, folder) = guest("");
    let mut stream = dial(&folder);
    // vfkit compares this answer as a string.
    assert_eq!(say(&mut stream, b"{\"execute\": \"guest-ping\"}\n"), b"{\"return\": {}}\n");
    // Proxmox: the delimited sync and the command in one write, with no line ends.
    stream
        .write_all(
            b"{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":7}}{\"execute\":\"guest-ping\",\"id\":\"x\"}",
        )
        .unwrap();
    let mut answer = [0; 41];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"\xff{\"return\": 7}\n{\"id\": \"x\", \"return\": {}}\n");
    // Half a command, and the delimiter that throws it away.
    assert_eq!(
        say(&mut stream, b"{\"execute\": \"gu\xff{\"execute\": \"guest-ping\"}"),
        b"{\"return\": {}}\n"
    );
    let refused = say(&mut stream, b"{\"execute\": \"guest-exec\", \"arguments\": {\"path\": \"/bin/sh\"}}");
    assert_eq!(
        String::from_utf8(refused).unwrap(),
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command guest-exec has not been found\"}}\n"
    );
}

#[test]
fn a_hostile_peer_gets_errors_and_no_memory() {
    let (guest, folder) = guest("");
    let mut stream = dial(&folder);
    let error = say(&mut stream, b"rubbish\n");
    assert!(error.starts_with(b"{\"error\": {\"class\": \"GenericError\""), "{error:?}");
    let mut flood = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        flood.write_all(b"{\"execute\": \"").unwrap();
        for _ in 0..1024 {
            flood.write_all(&[b'{'; 64 * 1024]).unwrap();
        }
        flood.write_all(b"\n{\"execute\": \"guest-ping\"}\n").unwrap();
    });
    let mut lines = BufReader::new(&stream).lines();
    assert!(lines.next().unwrap().unwrap().contains("too long"));
    assert!(lines.any(|line| line.unwrap() == "{\"return\": {}}"));
    writer.join().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 * 1024, "{peak} KiB");
}

#[test]
fn the_policy_closes_the_door_and_bounds_it() {
    let (_guest, folder) = guest("[qga]\nvsock = [\"time\"]\n");
    let mut stream = dial(&folder);
    let refused = say(&mut stream, b"{\"execute\": \"guest-ping\"}\n");
    assert!(String::from_utf8(refused).unwrap().contains("CommandNotFound"));
    let (closed, folder) = guest("[qga]\nvsock = []\n");
    // It has listened for hosts since it said that it is ready, and for these it does not.
    let _ = closed.connect();
    assert!(UnixStream::connect(folder.path().join("qga")).is_err());
}
