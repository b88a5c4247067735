//! `hospes forward`, `connect` and `ssh-config` through real processes, and in a booted guest.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Beside, Deadline, Guest, Host, Lab, SharedGuest, tools_started, with_tools};

/// Nothing here waits longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `hospes forward` that is killed when the test ends.
struct Forward {
    child: Child,
    lines: BufReader<ChildStdout>,
    told: Receiver<String>,
}

impl Forward {
    fn start(host: &Host, words: &[&str]) -> Result<Self> {
        let mut command = host.command(&[&["forward", "vm", "--json"], words].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?);
        let (sender, told) = channel();
        let stderr = BufReader::new(child.stderr.take().context("a pipe")?);
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, lines, told })
    }

    /// The next event.
    fn event(&mut self) -> Result<serde_json::Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("hospes forward ended: {}", self.told.iter().collect::<Vec<_>>().join("\n"));
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// The port of the next listener.
    fn port(&mut self) -> Result<u16> {
        let event = self.event()?;
        ensure!(event["event"] == "listening", "{event}");
        event["port"].as_u64().and_then(|port| port.try_into().ok()).with_context(|| event.to_string())
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves callers on a port of this machine, each on a thread.
fn serve(act: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            let act = act.clone();
            thread::spawn(move || {
                caller.set_read_timeout(Some(PATIENCE))?;
                caller.set_write_timeout(Some(PATIENCE))?;
                act(caller)
            });
        }
    });
    Ok(port)
}

/// Reads to the end, and only then answers with the same bytes.
fn echo_at_the_end(mut caller: TcpStream) -> Result<()> {
    let mut heard = Vec::new();
    caller.read_to_end(&mut heard)?;
    caller.write_all(&heard)?;
    Ok(())
}

fn call(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends all, says the end, then reads to the end.
fn ask(port: u16, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = call(port)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard)?;
    Ok(heard)
}

fn noise(seed: u32, len: u32) -> Vec<u8> {
    (0..len).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect()
}

fn http(mut caller: TcpStream) -> Result<()> {
    let mut lines = BufReader::new(caller.try_clone()?).lines();
    while !lines.next().context("a request")??.is_empty() {}
    let body = noise(1, 700_000);
    write!(caller, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
    caller.write_all(&body)?;
    Ok(())
}

fn get(port: u16) -> Result<Vec<u8>> {
    let mut stream = call(port)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").context("a body")?;
    Ok(answer.split_off(at + 4))
}

#[test]
fn a_body_is_fetched_either_way() -> Result<()> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    let port = serve(http)?;
    let spec = format!("0:127.0.0.1:{port}");
    let mut forward = Forward::start(&host, &["-L", &spec, "-R", &spec])?;
    let (here, there) = (forward.port()?, forward.port()?);
    ensure!(get(here)? == noise(1, 700_000), "other bytes came by -L");
    ensure!(get(there)? == noise(1, 700_000), "other bytes came by -R");
    Ok(())
}

#[test]
fn two_hundred_at_once_each_get_their_own_bytes() -> Result<()> {
    let guest = Beside::start("")?;
    let mut host = guest.host()?;
    host.start_agent()?;
    let spec = format!("0:127.0.0.1:{}", serve(echo_at_the_end)?);
    let mut forward = Forward::start(&host, &["-L", &spec, "-R", &spec])?;
    let (here, there) = (forward.port()?, forward.port()?);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..200u32)
            .map(|n| {
                let port = if n % 2 == 0 { here } else { there };
                scope.spawn(move || -> Result<()> {
                    let sent = noise(n, n.wrapping_mul(2_654_435_761) % 400_000);
                    let heard = ask(port, &sent).with_context(|| format!("call {n}"))?;
                    ensure!(heard == sent, "call {n}: {} bytes for {}", heard.len(), sent.len());
                    Ok(())
                })
            })
            .collect();
        calls.into_iter().try_for_each(|call| call.join().map_err(|_| anyhow::anyhow!("a call panicked"))?)
    })
}

#[test]
fn a_slow_reader_holds_up_nobody_else() -> Result<()> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    let port = serve(|mut caller| Ok(caller.write_all(&noise(3, 20_000_000))?))?;
    let mut forward = Forward::start(&host, &["-L", &format!("0:127.0.0.1:{port}")])?;
    let here = forward.port()?;
    // It never reads; the worker keeps no more than the credit for it.
    let _slow = call(here)?;
    let mut heard = Vec::new();
    call(here)?.read_to_end(&mut heard)?;
    ensure!(heard == noise(3, 20_000_000), "{} bytes", heard.len());
    Ok(())
}

#[test]
fn a_refused_port_resets_its_caller_and_ends_nothing_else() -> Result<()> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let open = serve(http)?;
    let (closed, open) = (format!("0:127.0.0.1:{closed}"), format!("0:127.0.0.1:{open}"));
    let mut forward = Forward::start(&host, &["-L", &closed, "-L", &open, "-R", &closed])?;
    let (refused, good, refused_there) = (forward.port()?, forward.port()?, forward.port()?);
    for (port, direction) in [(refused, "to_guest"), (refused_there, "to_host")] {
        let error = call(port)?.read(&mut [0]).expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let event = forward.event()?;
        assert_eq!((&event["event"], &event["direction"]), (&"failed".into(), &direction.into()), "{event}");
        ensure!(event["message"].as_str().is_some_and(|text| text.contains("onnection refused")), "{event}");
    }
    ensure!(get(good)? == noise(1, 700_000), "the other forward goes on");
    Ok(())
}

#[test]
fn a_kill_at_either_end_is_a_reset_and_what_listens_stays() -> Result<()> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    let (sender, outcomes) = channel();
    let port = serve(move |mut caller| {
        caller.write_all(b"x")?;
        let mut heard = Vec::new();
        sender.send(caller.read_to_end(&mut heard).map_err(|error| error.kind()))?;
        Ok(())
    })?;
    let spec = format!("0:127.0.0.1:{port}");
    let mut forward = Forward::start(&host, &["-L", &spec, "-R", &spec])?;
    let (here, there) = (forward.port()?, forward.port()?);
    let mut byte = [0];

    let mut caller = call(here)?;
    caller.read_exact(&mut byte)?;
    guest.kill_workers();
    assert_eq!(caller.read(&mut byte).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    outcomes.recv_timeout(PATIENCE)?.ok();
    // The guest's listener is lost and comes back at the same port, by another worker.
    loop {
        let event = forward.event()?;
        if event["event"] == "listening" {
            assert_eq!(event["port"], there);
            break;
        }
    }
    for port in [here, there] {
        let mut caller = call(port)?;
        caller.read_exact(&mut byte)?;
        caller.shutdown(Shutdown::Write)?;
        assert_eq!(outcomes.recv_timeout(PATIENCE)?, Ok(0));
    }

    let mut caller = call(here)?;
    caller.read_exact(&mut byte)?;
    drop(forward);
    assert_eq!(outcomes.recv_timeout(PATIENCE)?, Err(ErrorKind::ConnectionReset));
    Deadline::after(PATIENCE).poll("the guest's listener to go", || {
        Ok(TcpStream::connect(("127.0.0.1", there)).is_err().then_some(()))
    })
}

#[test]
fn unix_sockets_are_the_users_alone_and_go_with_the_forward() -> Result<()> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name).display().to_string();
    let listener = UnixListener::bind(at("server"))?;
    thread::spawn(move || {
        for mut caller in listener.incoming().flatten() {
            let mut heard = Vec::new();
            caller.read_to_end(&mut heard)?;
            caller.write_all(&heard)?;
        }
        std::io::Result::Ok(())
    });
    let (here, there) =
        (format!("{}:unix:{}", at("here"), at("server")), format!("{}:{}", at("there"), at("server")));
    let mut forward = Forward::start(&host, &["-L", &here, "-R", &there])?;
    for _ in 0..2 {
        ensure!(forward.event()?["event"] == "listening");
    }
    for name in ["here", "there"] {
        assert_eq!(fs::metadata(at(name))?.permissions().mode() & 0o777, 0o600, "{name}");
        let mut caller = UnixStream::connect(at(name))?;
        caller.set_read_timeout(Some(PATIENCE))?;
        let sent = noise(5, 1_500_000);
        // The server reads all before it answers.
        caller.write_all(&sent)?;
        caller.shutdown(Shutdown::Write)?;
        let mut heard = Vec::new();
        caller.read_to_end(&mut heard)?;
        ensure!(heard == sent, "{name}: {} bytes", heard.len());
    }
    // The ordinary end.
    let pid = nix::unistd::Pid::from_raw(forward.child.id().try_into()?);
    // Not SIGINT: whoever runs the tests in the background has it ignored, and then so does the forward.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let ended = Deadline::after(PATIENCE).poll("the forward to end", || Ok(forward.child.try_wait()?))?;
    assert_eq!(ended.code(), Some(0));
    assert!(!directory.path().join("here").exists());
    Deadline::after(PATIENCE)
        .poll("the guest's socket to go", || Ok((!directory.path().join("there").exists()).then_some(())))
}

#[test]
fn connect_is_exact_and_tells_refusals() -> Result<()> {
    let guest = Beside::start("")?;
    let host = guest.host()?;
    let port = serve(echo_at_the_end)?;
    let sent = noise(9, 3_000_000);
    let ran = host.run_with(&["connect", "vm", &format!("tcp:127.0.0.1:{port}")], &sent)?;
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    ensure!(ran.stdout == sent, "{} bytes came back", ran.stdout.len());
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let refused = host.run(&["connect", "vm", &format!("tcp:127.0.0.1:{closed}")])?;
    assert_eq!((refused.status, refused.stdout), (125, vec![]));
    ensure!(refused.stderr.contains("Connection refused"), "{}", refused.stderr);
    let missing = host.run(&["connect", "vm", "unix:/no/such/socket"])?;
    assert_eq!(missing.status, 125);
    assert_eq!(host.run(&["connect", "vm", "http"])?.status, 125);
    Ok(())
}

#[test]
fn the_policy_can_forbid_it_and_the_log_has_the_address() -> Result<()> {
    let guest = Beside::start("[verbs]\nforward = false\n")?;
    let refused = guest.host()?.run(&["connect", "vm", "tcp:22"])?;
    assert_eq!(refused.status, 125);
    ensure!(refused.stderr.contains("does not allow forward"), "{}", refused.stderr);
    let guest = Beside::start("")?;
    let _ = guest.host()?.run(&["connect", "vm", "unix:/no/such/socket"])?;
    ensure!(guest.log()?.contains("connect to unix:/no/such/socket"), "{}", guest.log()?);
    Ok(())
}

/// A user's first session takes its time under emulation: it is begun before the tests.
fn prepared(guest: &Guest) -> Result<()> {
    tools_started(guest)?;
    guest.check("systemctl start --no-block user@1000.service")?;
    guest.wait_until("systemctl is-active user@1000.service", Duration::from_secs(240)).map(drop)
}

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("forward")).prepared(prepared);

fn booted(guest: &Guest) -> Result<Host> {
    let mut host = Host::sharing_identity()?;
    host.add("vm", guest)?;
    host.start_agent()?;
    host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
    host.run(&["exec", "--connect-timeout", "120s", "vm", "--", "true"])?.text()?;
    Ok(host)
}

#[test]
fn in_a_booted_guest_plain_ssh_works_with_the_printed_settings() -> Result<()> {
    let guest = GUEST.get()?;
    let host = booted(&guest)?;
    let config = host.home().join("ssh_config");
    fs::write(&config, host.run(&["ssh-config", "vm"])?.text()?)?;
    let ssh = |script: &str, stdin: &[u8]| -> Result<Vec<u8>> {
        let mut child = std::process::Command::new("ssh")
            .arg("-F")
            .arg(&config)
            .arg("-i")
            .arg(Lab::find()?.file("ssh_key"))
            .args([
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
            ])
            .args(["-o", "LogLevel=ERROR", "vm", script])
            .env_clear()
            .envs(host.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut pipe = child.stdin.take().context("a pipe")?;
        let stdin = stdin.to_vec();
        let writer = thread::spawn(move || pipe.write_all(&stdin));
        let output = child.wait_with_output()?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        ensure!(
            output.status.success(),
            "ssh ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    };
    assert_eq!(ssh("id -un", b"")?, b"dev\n");
    let bytes = noise(2, 1_000_000);
    ensure!(ssh("cat", &bytes)? == bytes, "other bytes came back");
    Ok(())
}

#[test]
fn in_a_booted_guest_both_directions_carry_bytes() -> Result<()> {
    let guest = GUEST.get()?;
    let host = booted(&guest)?;
    let port = serve(http)?;
    let mut forward = Forward::start(
        &host,
        &["-R", &format!("18080:127.0.0.1:{port}"), "-L", "0:unix:/run/dbus/system_bus_socket"],
    )?;
    let here = forward.port()?;
    assert_eq!(forward.port()?, 18080);
    let fetch = "exec 3<>/dev/tcp/127.0.0.1/18080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; sed '1,/^\\r$/d' <&3 | wc -c";
    let count = guest.check(&format!("bash -c \"{}\"", fetch.replace('$', "\\$")))?;
    assert_eq!(count.trim(), "700000");
    // D-Bus answers an authentication, as dev.
    let mut bus = call(here)?;
    bus.write_all(b"\0AUTH EXTERNAL\r\n")?;
    let mut answer = [0; 4];
    bus.read_exact(&mut answer)?;
    assert_eq!(&answer, b"DATA");
    Ok(())
}
