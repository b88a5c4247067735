//! `host-hv run`: a machine, with its serial port on this terminal.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use clap::Args;
use host_hv::hypervisor;
use host_hv::machine::kernel::Kernel;
use host_hv::machine::network::Network;
use host_hv::machine::serial::Serial;
use host_hv::machine::streams::Streams;
use host_hv::machine::{Machine, Outcome, Plan, Plug};
use host_hv::virtio::blk::Disk;
use host_hv::virtio::net::Address;
use host_hv::virtio::vsock;
use nix::sys::stat::{Mode, umask};

use super::terminal::{self, Keys, Raw};

/// How many reads of the keyboard wait for a guest that takes none.
const KEYS_MAX: usize = 1024;
/// How many requests for folders are served at a time.
const FOLDER_THREADS: usize = 4;

#[derive(Args)]
pub(crate) struct RunArgs {
    /// The kernel: an arm64 Image, Image.gz or EFI zboot, as distributions have it in /boot
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,

    /// The kernel's first file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// The kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "console=ttyAMA0")]
    append: String,

    /// How many vCPUs
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    cpus: u32,

    /// How much memory: a number with M or G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,

    /// A disk: a raw image or a block device; may be given again
    ///
    /// The guest has them as /dev/vda, /dev/vdb and so on, and by their files' names in /dev/disk/by-id. ":ro" after the
    /// path keeps it from writing. A disk that is written is this machine's alone. What the guest flushes is on this
    /// machine's disk; what it discards is free here too.
    #[arg(long, value_name = "FILE[:ro]", value_parser = parse_disk)]
    disk: Vec<DiskPath>,

    /// A network: the socket at which passt ("passt --socket PATH") or gvproxy (its --listen-qemu) waits
    ///
    /// May be given again. Without "mac=" the guest has an address that is made of the path. "mtu=" is the most bytes of a
    /// packet, 1500 where nothing is said; passt takes 65520, which is quickest.
    #[arg(long, value_name = "PATH[,mac=ADDRESS][,mtu=BYTES]", value_parser = parse_network)]
    net: Vec<Network>,

    /// A folder of this machine for the guest, by its own name or another; may be given again
    ///
    /// The guest mounts them all by one tag ("mount -t virtiofs hospes /mnt/hospes"; hospes-tools does it by itself) and
    /// sees a directory for each. "host-hv fs --help" has what the options mean.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "[NAME=]PATH[:ro][:owner=…]", value_parser = super::share::parse)]
    share: Vec<host_hv::fuse::ShareSpec>,

    /// What the guest mounts its folders by
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "TAG", default_value = "hospes")]
    tag: String,

    /// Where folders are added, listed and removed while the guest runs, as "hospes share add" does
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Where clients on this machine connect to the guest's vsock ports, as "hospes add NAME unix:PATH" has it
    ///
    /// "host-hv vsock --help" has what they say first. A guest that connects to port P of cid 2 reaches whoever listens
    /// at the same path with "_P" appended. The socket is made for its owner alone.
    #[arg(long, value_name = "PATH")]
    uds: Option<PathBuf>,

    /// The guest's cid
    #[arg(long, value_name = "CID", default_value_t = 3, requires = "uds",
        value_parser = clap::value_parser!(u64).range(3..=0xffff_fffe))]
    cid: u64,

    /// A socket that leads straight to one vsock port of the guest, with no CONNECT line; may be given again
    #[arg(long, value_name = "PORT=PATH", requires = "uds", value_parser = crate::parse_port)]
    port_uds: Vec<(u32, PathBuf)>,

    /// End when the guest wants to begin anew, rather than let it
    #[arg(long)]
    no_reboot: bool,
}

/// The machine that runs at present: whose keys the terminal's are. Another one has its place after a reset.
#[derive(Default)]
struct Present {
    machine: Mutex<Option<(Arc<Serial>, Plug)>>,
    /// There is to be no other.
    over: AtomicBool,
}

impl Present {
    fn machine(&self) -> MutexGuard<'_, Option<(Arc<Serial>, Plug)>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some((_, plug)) = &*self.machine() {
            plug.pull();
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct DiskPath {
    path: PathBuf,
    read_only: bool,
}

pub(crate) fn run(arguments: RunArgs) -> Result<()> {
    // Sockets are their owner's alone from the moment they exist.
    umask(Mode::from_bits_truncate(0o177));
    // Each connection needs a descriptor, and each open file of a folder.
    #[cfg(target_os = "linux")]
    crate::raise_open_files();
    let disks = arguments.disk.iter().map(|disk| Disk::open(&disk.path, disk.read_only));
    let streams = arguments.uds.as_deref().map(|path| {
        Streams::bind(arguments.cid, path, &arguments.port_uds, vsock::Limits::default()).map(Arc::new)
    });
    #[cfg(target_os = "linux")]
    let (folders, _control) = if arguments.share.is_empty() && arguments.control.is_none() {
        (None, None)
    } else {
        let (server, control) = super::share::serve(arguments.share, arguments.control.as_deref())?;
        (Some(host_hv::machine::Folders { tag: arguments.tag, server, threads: FOLDER_THREADS }), control)
    };
    let plan = Plan {
        vcpus: arguments.cpus,
        memory: arguments.memory,
        kernel: Kernel::parse(read(&arguments.kernel)?)
            .with_context(|| format!("{} cannot be started", arguments.kernel.display()))?,
        initramfs: arguments.initrd.as_deref().map(read).transpose()?,
        arguments: arguments.append,
        disks: disks.map(|disk| disk.map(Arc::new)).collect::<Result<_, _>>()?,
        networks: arguments.net,
        #[cfg(target_os = "linux")]
        folders,
        streams: streams.transpose().context("The guest's vsock cannot be served")?,
    };
    // What a guest makes in a folder has the mode that its own kernel says.
    umask(Mode::empty());
    let hypervisor = hypervisor::open()?;
    let present = Arc::new(Present::default());
    #[cfg(target_os = "linux")]
    end_on_signals(&present)?;
    let raw = Raw::set().context("The terminal cannot be set up")?;
    if raw.is_some() {
        eprintln!("{}\r", terminal::HELP);
    }
    listen_to_keyboard(&present, raw.is_some())?;
    loop {
        let machine = Machine::new(&plan, hypervisor.as_ref())?;
        let serial = machine.serial();
        *present.machine() = Some((Arc::clone(&serial), machine.plug()));
        if present.over.load(Ordering::SeqCst) {
            return Ok(());
        }
        let outcome = thread::scope(|scope| {
            scope.spawn(move || serial.print(&mut io::stdout()));
            machine.run()
        })?;
        match outcome {
            Outcome::Reset if !arguments.no_reboot => tracing::info!("The guest begins anew"),
            Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => return Ok(()),
        }
    }
}

/// Ends the machine when this process is told to end, so that the terminal and the sockets' paths are left in order.
#[cfg(target_os = "linux")]
fn end_on_signals(present: &Arc<Present>) -> Result<()> {
    let (mut stop, present) = (crate::stop_signals()?, Arc::clone(present));
    thread::Builder::new().name("signals".into()).spawn(move || {
        if stop.read_exact(&mut [0]).is_ok() {
            present.end();
        }
    })?;
    Ok(())
}

/// Passes on what is typed, until there is no more. Ctrl-A x is heard whatever the guest does: a terminal's keys are lost
/// where too many wait already. What comes from elsewhere waits.
fn listen_to_keyboard(present: &Arc<Present>, terminal: bool) -> Result<()> {
    let (sender, typed) = mpsc::sync_channel(KEYS_MAX);
    let (listener, typist) = (Arc::clone(present), Arc::clone(present));
    // It waits in a read until this process ends: nothing else ends a read from a terminal.
    thread::Builder::new().name("keyboard".into()).spawn(move || {
        let (mut stdin, mut keys, mut buffer) = (io::stdin().lock(), Keys::default(), [0; 256]);
        while let Ok(len @ 1..) = stdin.read(&mut buffer) {
            let (keys, end) = keys.read(&buffer[..len]);
            if terminal {
                let _ = sender.try_send(keys);
            } else {
                let _ = sender.send(keys);
            }
            if end {
                listener.end();
            }
        }
    })?;
    thread::Builder::new().name("typist".into()).spawn(move || type_in(&typist, &typed))?;
    Ok(())
}

/// Types on the machine that there is.
fn type_in(present: &Present, typed: &Receiver<Vec<u8>>) {
    for keys in typed {
        let machine = present.machine().clone();
        if let Some((serial, _)) = machine {
            serial.type_in(&keys);
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("Could not read {}", path.display()))
}

/// `FILE[:ro]`: the option is taken from the end, so that a path may have a colon in it.
fn parse_disk(text: &str) -> Result<DiskPath, String> {
    let (path, read_only) = text.strip_suffix(":ro").map_or((text, false), |path| (path, true));
    if path.is_empty() {
        return Err("expected FILE[:ro]".to_owned());
    }
    Ok(DiskPath { path: path.into(), read_only })
}

/// `PATH[,mac=ADDRESS][,mtu=BYTES]`: options are taken from the end, so that a path may have a comma in it.
fn parse_network(text: &str) -> Result<Network, String> {
    let (mut path, mut address, mut mtu) = (text, None, 1500);
    while let Some((before, option)) = path.rsplit_once(',') {
        match option.split_once('=') {
            Some(("mac", value)) => address = Some(value.parse::<Address>()?),
            Some(("mtu", value)) => {
                let wrong = || format!("{value} is no MTU: it is 1280 to 65535");
                mtu = value.parse().ok().filter(|mtu| *mtu >= 1280).ok_or_else(wrong)?;
            }
            _ => break,
        }
        path = before;
    }
    if path.is_empty() {
        return Err("expected PATH[,mac=ADDRESS][,mtu=BYTES]".to_owned());
    }
    let socket = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
    let address = address.unwrap_or_else(|| Address::of(socket.as_os_str().as_encoded_bytes()));
    Ok(Network { socket, address, mtu })
}

/// `512M`, `2G`, or plain bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['M', 'm']) {
        Some(digits) => (digits, 1 << 20),
        None => text.strip_suffix(['G', 'g']).map_or((text, 1), |digits| (digits, 1 << 30)),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text} is no size: write 512M or 2G"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text} is more than there can be"))
}

#[cfg(test)]
mod tests {
    use super::{Address, DiskPath, parse_disk, parse_network, parse_size};

    #[test]
    fn networks_have_options_behind_a_path_of_any_kind() {
        let net = parse_network("/run/a,b.sock,mtu=65520,mac=02:00:00:00:00:07").unwrap();
        assert_eq!((net.socket.to_str(), net.mtu), (Some("/run/a,b.sock"), 65520));
        assert_eq!(net.address, Address([2, 0, 0, 0, 0, 7]));
        let net = parse_network("/run/a").unwrap();
        assert_eq!((net.address, net.mtu), (Address::of(b"/run/a"), 1500));
        for wrong in ["", ",mtu=1500", "/run/a,mtu=100", "/run/a,mtu=70000", "/run/a,mac=1"] {
            assert!(parse_network(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_disk_is_written_unless_it_says_otherwise() {
        for (text, path, read_only) in [("a:b", "a:b", false), ("a:b:ro", "a:b", true), ("/ro", "/ro", false)]
        {
            assert_eq!(parse_disk(text), Ok(DiskPath { path: path.into(), read_only }));
        }
        assert!(parse_disk("").is_err() && parse_disk(":ro").is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("1048576"), Ok(1 << 20));
        for wrong in ["", "M", "-1G", "1.5G", "99999999999G", "2T"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
