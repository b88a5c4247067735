//! `hospes agent`

use clap::Parser;

use crate::agent::{self, AgentError};
use crate::cli::{Verb, VmPlace};
use crate::command_error::{CommandError, chain};
use crate::endpoint::Endpoint;

/// Run the agent in the foreground
///
/// It keeps a session with each VM, so that commands open their connections in one round trip, hospes list answers at
/// once and hospes events has something to tell. Commands work without it. Usually the user's service manager starts
/// it when a command first asks for it.
#[derive(Debug, Parser)]
pub struct Agent {
    /// Also listen for announcements of a guest behind this unix: endpoint, which was not added
    #[arg(long, value_name = "ENDPOINT")]
    announce: Vec<String>,
}

impl Verb for Agent {
    const NAME: &'static str = "agent";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let announce: Result<Vec<Endpoint>, _> = self.announce.iter().map(|text| text.parse()).collect();
        agent::run(announce?).map_err(|error| {
            let told = CommandError::local(chain(&error));
            if matches!(error, AgentError::Running { .. }) {
                told.hint("hospes doctor shows whether it is well")
            } else {
                told
            }
        })?;
        Ok(0)
    }
}
