//! `hospes ip`

use std::net::IpAddr;
use std::time::{Duration, Instant};

use clap::Parser;
use hospes_protocol::info::Info;
use serde::Serialize;

use crate::cli::target::{Reach, duration};
use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::vm::VmName;
use crate::{cli, control, ui};

/// Print a guest's address
///
/// It is the one to use first: of the interface with the default route before others, IPv4 before IPv6, link-local
/// ones last.
///
/// With --json: {"vm", "addresses": [best first]}.
#[derive(Debug, Parser)]
pub struct Ip {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// Wait until the guest is there and has an address
    #[arg(short = 'W', long)]
    wait: bool,
    /// With --wait, how long, such as 2m [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    timeout: Option<Duration>,
    /// Print every address, one to a line
    #[arg(short, long)]
    all: bool,
    /// IPv4 alone
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// IPv6 alone
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Serialize)]
struct Told<'i> {
    vm: &'i VmName,
    addresses: &'i [String],
}

impl Verb for Ip {
    const NAME: &'static str = "ip";
    const VM: VmPlace = VmPlace::Only;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let found = |info: &Info| {
            let found: Vec<String> = addresses(info).filter(|address| self.wants(address)).collect();
            (!found.is_empty()).then_some(found)
        };
        let found = if self.wait {
            let deadline = self.timeout.map(|time| Instant::now() + time);
            cli::wait::until(&client, deadline, "an address", |client, deadline| {
                control::info_until(client, deadline, found)
            })?
        } else {
            found(&control::info(&client)?).ok_or_else(|| {
                CommandError::new("no_address", format_args!("{} has no such address", self.vm))
                    .hint("hospes ip --wait waits for one")
            })?
        };
        if self.json {
            ui::json(&Told { vm: &self.vm, addresses: &found })?;
        } else {
            let shown = if self.all { &found[..] } else { &found[..1] };
            ui::line(shown.join("\n"))?;
        }
        Ok(0)
    }
}

impl Ip {
    fn wants(&self, address: &str) -> bool {
        match address.parse() {
            Ok(IpAddr::V4(_)) => !self.ipv6,
            Ok(IpAddr::V6(_)) => !self.ipv4,
            Err(_) => false,
        }
    }
}

/// The guest's addresses without their prefix lengths, the one to use first: of the default route's interface before
/// others, global before link-local. Loopback is left out.
pub fn addresses(info: &Info) -> impl Iterator<Item = String> {
    let mut found: Vec<(u8, String)> = Vec::new();
    for interface in info.interfaces.iter().filter(|interface| interface.up) {
        for text in &interface.addresses {
            let bare = text.split('/').next().unwrap_or_default();
            let Ok(address) = bare.parse::<IpAddr>() else { continue };
            let link_local = match address {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            if !address.is_loopback() && !address.is_unspecified() {
                let rank = u8::from(link_local) * 4
                    + u8::from(!interface.default_route) * 2
                    + u8::from(address.is_ipv6());
                found.push((rank, address.to_string()));
            }
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::info::Interface;

    #[test]
    fn the_default_routes_address_is_first_and_nonsense_is_no_address() {
        let interface = |name: &str, default_route, addresses: &[&str]| Interface {
            name: name.to_owned(),
            up: true,
            default_route,
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            ..Interface::default()
        };
        let info = Info {
            interfaces: vec![
                interface("docker0", false, &["172.17.0.1/16"]),
                interface("lo", false, &["127.0.0.1/8", "::1/128"]),
                interface("eth0", true, &["fe80::1/64", "2001:db8::7/64", "192.0.2.7/24", "$(reboot)/24"]),
            ],
            ..Info::default()
        };
        let found: Vec<String> = addresses(&info).collect();
        assert_eq!(found, ["192.0.2.7", "2001:db8::7", "172.17.0.1", "fe80::1"]);
    }
}
