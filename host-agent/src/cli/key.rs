//! `hospes key`

use clap::{Parser, Subcommand};
use hospes_protocol::keys::PublicKey;
use serde::Serialize;

use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::identity;
use crate::pins::Pins;
use crate::registry::Registry;
use crate::ui;
use crate::vm::VmName;

/// Show or replace the key by which guests know this host
#[derive(Debug, Parser)]
pub struct Key {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Print this host's public key, as a guest's trust file takes it, or a VM's
    ///
    /// With --json: {"key", "fingerprint", "vm"}; "vm" is null for the host's own key.
    Show {
        /// The VM whose guest's key is shown
        #[arg(add = crate::cli::complete::vms())]
        vm: Option<VmName>,
        /// Print the fingerprint alone
        #[arg(short, long)]
        fingerprint: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make another key for this host
    ///
    /// Guests that pinned the old one refuse this host until they are told of the new one. The old key is kept beside
    /// it as host.key.old.
    ///
    /// With --json: as key show.
    Rotate {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct Told {
    key: String,
    fingerprint: String,
    vm: Option<VmName>,
}

impl Verb for Key {
    const NAME: &'static str = "key";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        match self.act {
            Act::Show { vm: None, fingerprint, json } => {
                show(&identity::load_or_create()?.public(), None, fingerprint, json)?;
            }
            Act::Show { vm: Some(vm), fingerprint, json } => {
                let pin = Pins::open()?.load(&vm)?;
                let Some(pin) = pin else {
                    Registry::open()?.load(&vm)?;
                    return Err(CommandError::new(
                        "unknown_key",
                        format_args!("The key of {vm} is not known yet"),
                    )
                    .hint("The first connection pins it, such as hospes info's"));
                };
                show(&pin.key, Some(vm), fingerprint, json)?;
            }
            Act::Rotate { json } => {
                show(&identity::rotate()?.public(), None, false, json)?;
                ui::note(
                    "Guests that pinned the old key must be told of this one: put it in their trust files",
                );
            }
        }
        Ok(0)
    }
}

fn show(key: &PublicKey, vm: Option<VmName>, fingerprint: bool, json: bool) -> Result<(), CommandError> {
    if json {
        ui::json(&Told { key: key.to_text(), fingerprint: key.fingerprint(), vm })
    } else if fingerprint {
        ui::line(key.fingerprint())
    } else {
        ui::line(key.to_text())
    }
}
