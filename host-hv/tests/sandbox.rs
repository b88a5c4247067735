//! What a program is left with in the sandbox: each bolt is tried by a process that is behind it, as root and as a user.

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    let words: Vec<_> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == "inside") {
        inside::main(&words[2], &words[3]);
    } else if !words.iter().any(|word| word == "--list") {
        outside::main();
    }
}

#[cfg(target_os = "linux")]
mod outside {
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    const NOBODY: u32 = 65534;
    const DEADLINE: Duration = Duration::from_secs(60);

    pub(super) fn main() {
        let users: &[Option<u32>] =
            if rustix::process::geteuid().is_root() { &[None, Some(NOBODY)] } else { &[None] };
        for &user in users {
            let stage = Stage::new(user);
            eprintln!("sandbox: as {}", user.map_or("who runs this".to_owned(), |user| user.to_string()));
            stage.every_bolt_holds();
            stage.the_device_is_behind_them_and_shares_come_and_go();
            stage.the_device_of_streams_is_behind_them_and_has_no_capability();
            stage.without_one_it_says_so();
        }
        println!("test result: ok");
    }

    /// Folders and programs that a user may use, wherever this was built.
    struct Stage {
        directory: tempfile::TempDir,
        user: Option<u32>,
    }

    impl Stage {
        fn new(user: Option<u32>) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let stage = Self { directory, user };
            for folder in ["share", "outside", "run"] {
                fs::create_dir(stage.at(folder)).expect("a directory");
            }
            fs::write(stage.at("share/inside"), "inside").expect("a file");
            fs::write(stage.at("outside/secret"), "secret").expect("a file");
            symlink("../outside/secret", stage.at("share/near")).expect("a link");
            symlink(stage.at("outside/secret"), stage.at("share/far")).expect("a link");
            fs::copy("/bin/true", stage.at("share/program")).expect("a program");
            fs::copy(std::env::current_exe().expect("this program"), stage.at("test")).expect("copied");
            fs::copy(env!("CARGO_BIN_EXE_host-hv"), stage.at("host-hv")).expect("copied");
            if let Some(user) = user {
                let null = Command::new("mknod").arg(stage.at("share/null")).args(["c", "1", "3"]).status();
                assert!(null.expect("mknod").success());
                for name in ["", "share", "outside", "run", "share/inside", "outside/secret", "share/null"] {
                    chown(stage.at(name), Some(user), Some(user)).expect("given away");
                }
            }
            fs::set_permissions(stage.directory.path(), fs::Permissions::from_mode(0o755)).expect("open");
            stage
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn command(&self, program: &str) -> Command {
            let mut command = Command::new(self.at(program));
            if let Some(user) = self.user {
                command.uid(user).gid(user);
            }
            command.current_dir(self.directory.path()).stdin(Stdio::null());
            command
        }

        fn every_bolt_holds(&self) {
            let status =
                self.command("test").arg("inside").arg(self.at("share")).arg(self.at("outside")).status();
            assert!(status.expect("started").success(), "a bolt is open");
        }

        fn the_device_is_behind_them_and_shares_come_and_go(&self) {
            let (socket, control) = (self.at("run/fs"), self.at("run/control"));
            let mut device = Device(
                self.command("host-hv")
                    .args(["fs", "--sandbox", "strict", "--socket"])
                    .arg(&socket)
                    .arg("--control")
                    .arg(&control)
                    .arg("--share")
                    .arg(format!("first={}", self.at("share").display()))
                    .env("RUST_LOG", "warn")
                    .spawn()
                    .expect("started"),
            );
            let mut client = Client::new(&control);
            let added = client.ask(&format!(
                r#"{{"do":"share.add","name":"second","path":"{}"}}"#,
                self.at("outside").display()
            ));
            assert!(added.contains(r#"{"ok""#), "{added}");
            let missing = client.ask(r#"{"do":"share.add","name":"x","path":"/does/not/exist"}"#);
            assert!(missing.contains("no-such-path"), "{missing}");
            let listed = client.ask(r#"{"do":"share.list"}"#);
            assert!(listed.contains("first") && listed.contains("second"), "{listed}");
            let mut watch = Client::new(&control);
            let told = watch.ask(r#"{"do":"share.watch"}"#);
            assert!(told.contains("secret") || told.contains("cannot-watch"), "{told}");

            let process = PathBuf::from("/proc").join(device.0.id().to_string());
            let status = fs::read_to_string(process.join("status")).expect("its status");
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
                line.trim_start_matches(':').trim().to_owned()
            };
            assert_eq!((field("Seccomp").as_str(), field("NoNewPrivs").as_str()), ("2", "1"));
            const ADMINISTRATOR: u64 = 1 << 21;
            let capabilities = u64::from_str_radix(&field("CapPrm"), 16).expect("hexadecimal");
            assert_eq!(capabilities & ADMINISTRATOR, 0);
            assert!(self.user.is_none() || capabilities == 0, "{capabilities:x}");
            for name in ["mnt", "net", "ipc"] {
                let of = |process: &Path| fs::read_link(process.join("ns").join(name)).expect("a namespace");
                assert_ne!(of(&process), of(Path::new("/proc/self")), "{name}");
            }
            assert_eq!(client.ask(r#"{"do":"share.remove","name":"first"}"#).find("ok"), Some(2));

            // However it ends, nothing stays behind.
            if self.user.is_some() {
                device.0.kill().expect("killed");
            } else {
                let pid = rustix::process::Pid::from_child(&device.0);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("asked to end");
            }
            device.0.wait().expect("ended");
            wait_until(|| !socket.exists() && !control.exists());
        }

        fn the_device_of_streams_is_behind_them_and_has_no_capability(&self) {
            let (socket, streams) = (self.at("run/vsock"), self.at("run/vm"));
            let mut device = Device(
                self.command("host-hv")
                    .args(["vsock", "--cid", "77", "--sandbox", "strict", "--socket"])
                    .arg(&socket)
                    .arg("--uds")
                    .arg(&streams)
                    .env("RUST_LOG", "warn")
                    .spawn()
                    .expect("started"),
            );
            let status = PathBuf::from("/proc").join(device.0.id().to_string()).join("status");
            // The last of the bolts.
            wait_until(|| fs::read_to_string(&status).is_ok_and(|status| status.contains("Seccomp:\t2\n")));
            let status = fs::read_to_string(&status).expect("its status");
            assert!(status.contains("CapPrm:\t0000000000000000\n"), "{status}");
            assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
            device.0.kill().expect("killed");
            device.0.wait().expect("ended");
            wait_until(|| !socket.exists() && !streams.exists());
        }

        fn without_one_it_says_so(&self) {
            let output = self
                .command("host-hv")
                .args(["fs", "--sandbox", "off", "--share", "a=/does/not/exist", "--socket"])
                .arg(self.at("run/fs"))
                .output()
                .expect("started");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("No sandbox"), "{said}");
            assert!(!output.status.success() && said.contains("not there on the host"), "{said}");
        }
    }

    struct Device(Child);

    impl Drop for Device {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    struct Client(BufReader<UnixStream>);

    impl Client {
        fn new(path: &Path) -> Self {
            wait_until(|| UnixStream::connect(path).is_ok());
            let stream = UnixStream::connect(path).expect("connect");
            stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
            Self(BufReader::new(stream))
        }

        fn ask(&mut self, line: &str) -> String {
            self.0.get_mut().write_all(format!("{line}\n").as_bytes()).expect("asked");
            let mut answer = String::new();
            self.0.read_line(&mut answer).expect("an answer");
            answer
        }
    }

    fn wait_until(mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < DEADLINE, "it does not happen");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "calls that no library would make are made raw")]
#[expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "small constants, as raw arguments"
)]
#[expect(clippy::needless_pass_by_value, reason = "results are there to be looked at")]
mod inside {
    use std::fs;
    use std::io::{self, Read};
    use std::net::TcpStream;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::path::Path;
    use std::process::Command;

    use host_hv::fuse::share::open_root;
    use host_hv::sandbox::{Mode, Purpose, Sandbox};
    use rustix::fs::{AtFlags, Mode as Bits, OFlags, openat, statat};

    struct Tally {
        bad: usize,
    }

    impl Tally {
        fn refused<T>(&mut self, what: &str, result: Result<T, impl Into<io::Error>>) {
            if result.is_ok() {
                self.bad += 1;
                eprintln!("sandbox: {what}: NOT REFUSED");
            }
        }

        fn works<T>(&mut self, what: &str, result: Result<T, impl Into<io::Error>>) {
            if let Err(error) = result {
                self.bad += 1;
                let error: io::Error = error.into();
                eprintln!("sandbox: {what}: DOES NOT WORK: {error}");
            }
        }
    }

    /// A call that must not exist here.
    fn call(number: libc::c_long, arguments: [usize; 4]) -> io::Result<()> {
        let [a, b, c, d] = arguments;
        // SAFETY: all arguments are plain numbers or null; the calls tried change nothing of this program's memory.
        match unsafe { libc::syscall(number, a, b, c, d, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            // A child that should not be.
            0 if number == libc::SYS_clone => std::process::exit(0),
            _ => Ok(()),
        }
    }

    fn open(root: &OwnedFd, name: &str) -> io::Result<String> {
        let file = openat(root, name, OFlags::RDONLY | OFlags::CLOEXEC, Bits::empty())?;
        let mut text = String::new();
        fs::File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }

    pub(super) fn main(share: &str, outside: &str) {
        let parent = usize::try_from(std::os::unix::process::parent_id()).expect("a number");
        let sandbox = Sandbox::prepare(Mode::Strict).expect("a kernel with all that it takes");
        let root = open_root(Path::new(share)).expect("the share");
        let root = sandbox.opener().enclose(root).expect("a copy");
        sandbox.close(Purpose::Folders).expect("closed");
        let mut tally = Tally { bad: 0 };
        let t = &mut tally;

        // Files of the host.
        let secret = Path::new(outside).join("secret");
        t.refused("opening a path", fs::read(&secret));
        t.refused("opening a system file", fs::read("/etc/passwd"));
        t.refused("looking at a path", fs::metadata(&secret));
        t.refused("permissions of a path", rustix::fs::chmod(&secret, Bits::from_raw_mode(0o777)));
        t.refused("listing the share by its path", fs::read_dir(share));
        t.refused("making something in the root", fs::create_dir("/new"));
        let names: Vec<_> =
            fs::read_dir("/").expect("the root").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["proc"], "what is in the root");
        t.refused("up and out of the share", open(&root, "../outside/secret"));
        t.refused("up to the top", open(&root, "../../../../../../../../etc/passwd"));
        let up = statat(&root, "..", AtFlags::empty()).expect("the share itself");
        let here = statat(&root, ".", AtFlags::empty()).expect("the share");
        assert_eq!((up.st_dev, up.st_ino), (here.st_dev, here.st_ino), "above the share is the share");
        t.refused("a relative link", open(&root, "near"));
        t.refused("an absolute link", open(&root, "far"));
        if statat(&root, "null", AtFlags::empty()).is_ok() {
            t.refused("a device in the share", open(&root, "null"));
        }
        t.refused(
            "making a device",
            rustix::fs::mknodat(
                &root,
                "device",
                rustix::fs::FileType::CharacterDevice,
                Bits::from_raw_mode(0o600),
                rustix::fs::makedev(1, 3),
            ),
        );

        // Programs, other processes, the network.
        t.refused("starting a program", Command::new("/proc/self/exe").arg("--list").spawn());
        let program = openat(&root, "program", OFlags::RDONLY, Bits::empty()).expect("the program");
        let program = program.as_raw_fd() as usize;
        let empty = c"".as_ptr() as usize;
        t.refused("a program by descriptor", call(libc::SYS_execveat, [program, empty, 0, 0]));
        t.refused("forking", call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0]));
        t.refused("the newer way to fork", call(libc::SYS_clone3, [0, 0, 0, 0]));
        t.refused("signals", call(libc::SYS_kill, [parent, 0, 0, 0]));
        t.refused("signals to threads", call(libc::SYS_tgkill, [parent, parent, 0, 0]));
        t.refused("tracing", call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, parent, 0, 0]));
        t.refused("others' memory", call(libc::SYS_process_vm_readv, [parent, 0, 0, 0]));
        t.refused("others' descriptors", call(libc::SYS_pidfd_open, [parent, 0, 0, 0]));
        t.refused("TCP", TcpStream::connect("127.0.0.1:1"));
        t.refused("a socket", UnixDatagram::unbound());
        t.refused("a pair of sockets", UnixStream::pair());
        t.refused("commands to a terminal", call(libc::SYS_ioctl, [2, libc::TIOCSTI as usize, empty, 0]));

        // The kernel's own wider doors.
        let page = libc::PROT_READ as usize | libc::PROT_EXEC as usize;
        t.refused("executable memory", call(libc::SYS_mprotect, [0, 0, page, 0]));
        for (what, number) in [
            ("mounting", libc::SYS_mount),
            ("unmounting", libc::SYS_umount2),
            ("namespaces", libc::SYS_unshare),
            ("another's namespace", libc::SYS_setns),
            ("another root", libc::SYS_chroot),
            ("file handles", libc::SYS_open_by_handle_at),
            ("programs in the kernel", libc::SYS_bpf),
            ("rings of calls", libc::SYS_io_uring_setup),
            ("faults of memory", libc::SYS_userfaultfd),
            ("keys", libc::SYS_add_key),
            ("performance counters", libc::SYS_perf_event_open),
            ("modules", libc::SYS_finit_module),
            ("another user", libc::SYS_setresuid),
            ("limits", libc::SYS_setrlimit),
            ("the time", libc::SYS_clock_settime),
        ] {
            t.refused(what, call(number, [0, 0, 0, 0]));
        }
        let capabilities = rustix::thread::capabilities(None).expect("asked").permitted;
        for wide in [rustix::thread::CapabilitySet::SYS_ADMIN, rustix::thread::CapabilitySet::SYS_PTRACE] {
            assert!(!capabilities.contains(wide), "{capabilities:?}");
        }

        // What the server lives on.
        t.works("reading", open(&root, "inside"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let made = openat(&root, "made", flags, Bits::from_raw_mode(0o600)).map(fs::File::from);
        t.works("making", made.as_ref().map(drop).map_err(|error| *error));
        if let Ok(made) = made {
            t.works("syncing", made.sync_all());
            let path = format!("/proc/self/fd/{}/made", root.as_fd().as_raw_fd());
            let flags = rustix::fs::XattrFlags::empty();
            match rustix::fs::lsetxattr(&path, "user.a", b"b", flags) {
                // Not every file system has them.
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                other => t.works("extended attributes", other),
            }
        }
        let mkdir = |name| rustix::fs::mkdirat(&root, name, Bits::from_raw_mode(0o700));
        mkdir("one").and_then(|()| mkdir("two")).and_then(|()| mkdir("one/deep")).expect("directories");
        t.works("moving a file to another directory", rustix::fs::renameat(&root, "made", &root, "one/made"));
        t.works("moving a directory", rustix::fs::renameat(&root, "one/deep", &root, "two/deep"));
        t.works(
            "linking into another directory",
            rustix::fs::linkat(&root, "one/made", &root, "two/made", AtFlags::empty()),
        );
        let unnamed = openat(&root, ".", OFlags::TMPFILE | OFlags::WRONLY, Bits::from_raw_mode(0o600));
        if let Ok(unnamed) = unnamed {
            let path = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
            t.works(
                "giving a file a name",
                rustix::fs::linkat(rustix::fs::CWD, path, &root, "named", AtFlags::SYMLINK_FOLLOW),
            );
        }
        use host_hv::fuse::sys::Fanotify;
        t.works("watching the share", Fanotify::new().and_then(|watch| watch.watch(&root)));
        t.works("threads", std::thread::Builder::new().spawn(|| {}).map(|thread| thread.join()));
        std::process::exit(i32::from(tally.bad > 0));
    }
}
