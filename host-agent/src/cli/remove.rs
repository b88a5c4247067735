//! `hospes remove`

use clap::Parser;

use crate::agent::ask::{Ask, Question};
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::pins::Pins;
use crate::registry::Registry;
use crate::vm::VmName;

/// Remove VMs that were added, and forget their keys
///
/// The VMs themselves are left alone.
#[derive(Debug, Parser)]
pub struct Remove {
    /// The VMs' names
    #[arg(required = true, value_name = "VM", add = crate::cli::complete::vms())]
    names: Vec<VmName>,
}

impl Verb for Remove {
    const NAME: &'static str = "remove";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let (registry, pins) = (Registry::open()?, Pins::open()?);
        for name in &self.names {
            registry.remove(name)?;
            pins.forget(name)?;
        }
        Ask::tell(&Question::Reload);
        Ok(0)
    }
}
