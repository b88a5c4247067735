//! `hospes forget`

use clap::Parser;

use crate::agent::ask::{Ask, Question};
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::pins::Pins;
use crate::registry::Registry;
use crate::ui;
use crate::vm::VmName;

/// Forget a guest's key, so that the next connection pins the one it then shows
///
/// Do this after a VM was recreated or its guest tools were reinstalled. The VM stays added.
#[derive(Debug, Parser)]
pub struct Forget {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
}

impl Verb for Forget {
    const NAME: &'static str = "forget";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let forgotten = Pins::open()?.forget(&self.vm)?;
        if !forgotten {
            // A name that was never added is a typing error, a VM without a pin is as asked.
            Registry::open()?.load(&self.vm)?;
            ui::note(format_args!("{} had no key yet", self.vm));
        }
        Ask::tell(&Question::Reload);
        Ok(0)
    }
}
