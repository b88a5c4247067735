//! `hospes share`

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{ArgGroup, Parser, Subcommand};
use serde::Serialize;

use crate::cli::{Verb, VmPlace};
use crate::command_error::{CommandError, chain};
use crate::hv::{self, Ask, HvError};
use crate::printable;
use crate::registry::Registry;
use crate::ui::{self, Table};
use crate::vm::VmName;

/// Share folders of this machine with a VM
///
/// A share appears in the guest as /mnt/hospes/NAME, at once, and is gone when it is removed or the VM ends. It needs a
/// device of ours (host-hv fs) whose control socket the VM was added with: hospes add NAME ENDPOINT --hv PATH.
///
/// Exit code: 125 on every failure.
#[derive(Debug, Parser)]
pub struct Share {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Share a folder from now on
    ///
    /// With --json: {"name", "path", "read_only", "owner"}.
    Add {
        /// The VM
        #[arg(add = crate::cli::complete::vms())]
        vm: VmName,
        /// The folder on this machine
        #[arg(value_hint = clap::ValueHint::DirPath)]
        path: PathBuf,
        /// Its name in the guest; the folder's own unless given
        #[arg(long, value_name = "NAME")]
        r#as: Option<String>,
        /// The guest may read and not change it
        #[arg(long, visible_alias = "read-only")]
        ro: bool,
        /// Who owns what: map, squash or raw
        ///
        /// "map" makes the folder's owner on this machine and the guest's user 1000 the same person; "map:UID:GID" takes
        /// another user of the guest. "squash" and "squash:UID:GID" show all files as that user's, and accept and forget
        /// changes of owner. "raw" keeps the numbers; unless the device runs as root, the guest cannot give files away.
        #[arg(long, value_name = "MAPPING")]
        owner: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List what is shared
    ///
    /// With --json: {"vm", "shares": [{"name", "path", "read_only", "owner"}]}.
    List {
        /// The VM
        #[arg(add = crate::cli::complete::vms())]
        vm: VmName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let the guest change a share, or only read it
    #[command(group(ArgGroup::new("access").required(true)))]
    Set {
        /// The VM
        #[arg(add = crate::cli::complete::vms())]
        vm: VmName,
        /// The share
        name: String,
        /// The guest may only read it, for files that are open already too
        #[arg(long, visible_alias = "read-only", group = "access")]
        ro: bool,
        /// The guest may change it
        #[arg(long, visible_alias = "read-write", group = "access")]
        rw: bool,
    },
    /// Tell the guest of what happens to shared folders on this machine, until interrupted
    ///
    /// Programs in the guest that watch their files (editors, build tools) then see changes made on this machine, too. The
    /// agent does this by itself for every VM with a device; this is for machines without an agent.
    Watch {
        /// The VM
        #[arg(add = crate::cli::complete::vms())]
        vm: VmName,
    },
    /// Share a folder no more
    ///
    /// What the guest has open of it fails from now on. The folder itself stays as it is.
    Remove {
        /// The VM
        #[arg(add = crate::cli::complete::vms())]
        vm: VmName,
        /// The share
        name: String,
    },
}

#[derive(Serialize)]
struct Told<'a> {
    vm: &'a VmName,
    shares: Vec<hv::Share>,
}

impl Verb for Share {
    const NAME: &'static str = "share";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        match self.act {
            Act::Add { vm, path, r#as, ro, owner, json } => {
                let path = std::path::absolute(&path)
                    .map_err(|error| CommandError::io(format_args!("{}", path.display()), &error))?;
                let name = match r#as {
                    Some(name) => name,
                    None => own_name(&path)?,
                };
                let ask = Ask::AddShare { name: &name, path: &path, read_only: ro, owner: owner.as_deref() };
                let share: hv::Share = hv::ask(&control(&vm)?, &ask)?;
                if json {
                    ui::json(&share)?;
                }
            }
            Act::List { vm, json } => list(&vm, json)?,
            Act::Set { vm, name, ro, .. } => {
                hv::ask::<()>(&control(&vm)?, &Ask::SetShare { name: &name, read_only: ro })?;
            }
            Act::Watch { vm } => return Err(watch(&vm)?),
            Act::Remove { vm, name } => {
                hv::ask::<hv::Share>(&control(&vm)?, &Ask::RemoveShare { name: &name })?;
            }
        }
        Ok(0)
    }
}

fn list(vm: &VmName, json: bool) -> Result<(), CommandError> {
    let shares: Vec<hv::Share> = hv::ask(&control(vm)?, &Ask::ListShares)?;
    if json {
        return ui::json(&Told { vm, shares });
    }
    if shares.is_empty() {
        ui::note(format_args!("Nothing is shared with {vm}: hospes share add {vm} FOLDER"));
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "PATH", "ACCESS", "OWNER"]);
    for share in shares {
        let path = share.path.display().to_string();
        let access = if share.read_only { "read only" } else { "read, write" };
        table.row([
            &printable::line(&share.name),
            &*printable::line(&path),
            access,
            &printable::line(&share.owner),
        ]);
    }
    table.print()
}

/// Becomes the command that runs the guest's helper, with the device's stream as its standard input: neither bytes nor
/// a process of ours in between. Returns only where that fails.
fn watch(vm: &VmName) -> Result<CommandError, CommandError> {
    let stream = hv::stream(&control(vm)?)?;
    let program =
        std::env::current_exe().map_err(|error| CommandError::io("Cannot find this program", &error))?;
    let error = Command::new(program)
        .args(["exec", "--user", "root", "--connect-timeout", "60s", vm.as_str(), "--"])
        .args(["hospes-tools", "share", "replay"])
        .stdin(std::os::fd::OwnedFd::from(stream))
        .exec();
    Ok(CommandError::io("Cannot run hospes exec", &error))
}

/// The folder's name, links followed: `hospes share add dev .` means the folder one stands in.
fn own_name(path: &Path) -> Result<String, CommandError> {
    let real = path
        .canonicalize()
        .map_err(|error| CommandError::io(format_args!("Cannot share {}", path.display()), &error))?;
    let name = path.file_name().or_else(|| real.file_name()).and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| {
        CommandError::usage(format_args!("{} has no name that the guest could see", path.display()))
            .hint("Give it one with --as")
    })
}

/// The control socket that the VM was added with.
fn control(vm: &VmName) -> Result<PathBuf, CommandError> {
    let entry = Registry::open()?.load(vm)?;
    entry.spec.hv.ok_or_else(|| {
        CommandError::local(format_args!("{vm} was added without the control socket of a device")).hint(
            format_args!(
                "hospes add --replace {vm} {} --hv PATH, with the path that host-hv fs --control has",
                entry.spec.endpoint
            ),
        )
    })
}

impl From<HvError> for CommandError {
    fn from(error: HvError) -> Self {
        let hint = error.hint().map(str::to_owned);
        match error {
            HvError::Refused { kind, message } => {
                Self::new(&kind.replace('-', "_"), printable::line(&message))
            }
            error => {
                let kind = if matches!(error, HvError::Unreachable { .. }) { "unreachable" } else { "lost" };
                Self { hint, ..Self::new(kind, chain(&error)) }
            }
        }
    }
}
