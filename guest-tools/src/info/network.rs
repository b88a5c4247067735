//! Interfaces and their addresses, the ones that a host would want first.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use hospes_protocol::info::Interface;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use super::read;

/// Interfaces in one answer, and addresses of one interface. A container host may have thousands.
const INTERFACES: usize = 256;
const ADDRESSES: usize = 64;

/// rtnetlink's address flags, as `/proc/net/if_inet6` shows them (`linux/if_addr.h`).
const TEMPORARY: u32 = 0x01;
const DEPRECATED: u32 = 0x20;
const UNUSABLE: u32 = 0x08 | 0x40; // duplicate, or not yet known not to be

/// Names of interfaces that lead to containers and other guests, and not to the world.
const INNER: &[&str] =
    &["docker", "br-", "veth", "virbr", "vnet", "cni", "flannel", "cali", "lxc", "lxd", "podman", "tap"];

#[derive(Debug, Default)]
struct Found {
    interface: Interface,
    metric: Option<u32>,
    addresses: Vec<(IpAddr, u8)>,
}

pub(super) fn interfaces() -> Vec<Interface> {
    let Ok(entries) = getifaddrs() else { return Vec::new() };
    let flags = inet6_flags(&read("/proc/net/if_inet6"));
    let mut found: HashMap<String, Found> = HashMap::new();
    for entry in entries {
        if entry.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let of = found.entry(entry.interface_name.clone()).or_default();
        of.interface.up = entry.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
        take(&entry, of);
    }
    for (name, metric) in default_routes(&read("/proc/net/route"), &read("/proc/net/ipv6_route")) {
        if let Some(of) = found.get_mut(&name) {
            of.metric = Some(of.metric.map_or(metric, |known| known.min(metric)));
        }
    }
    let all = found.into_iter().map(|(name, mut of)| {
        of.interface.name = name;
        of
    });
    ranked(all.collect(), &flags)
}

fn take(entry: &InterfaceAddress, of: &mut Found) {
    let Some(address) = &entry.address else { return };
    if let Some(link) = address.as_link_addr() {
        let bytes = link.addr().unwrap_or_default();
        if bytes != [0; 6] {
            let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            of.interface.mac = digits.join(":");
        }
    }
    let prefix = entry.netmask.as_ref().and_then(ip).map_or(0, prefix);
    if let Some(ip) = ip(address) {
        of.addresses.push((ip, prefix));
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn prefix(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    u8::try_from(ones).unwrap_or(0)
}

/// The default route's interface first, then those that are up, then by name; what leads to containers last.
fn ranked(mut found: Vec<Found>, flags: &HashMap<Ipv6Addr, u32>) -> Vec<Interface> {
    found.sort_by_key(|of| {
        let name = &of.interface.name;
        let inner = INNER.iter().any(|prefix| name.starts_with(prefix));
        (of.metric.is_none(), of.metric, inner, !of.interface.up, name.clone())
    });
    found.truncate(INTERFACES);
    found
        .into_iter()
        .map(|Found { mut interface, metric, mut addresses }| {
            addresses.retain(|(ip, _)| !has(flags, ip, UNUSABLE));
            addresses.sort_by_key(|(ip, prefix)| (worth(ip, flags), ip.is_ipv6(), Reverse(*prefix), *ip));
            addresses.truncate(ADDRESSES);
            interface.addresses = addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
            interface.default_route = metric.is_some();
            interface
        })
        .collect()
}

fn has(flags: &HashMap<Ipv6Addr, u32>, ip: &IpAddr, bits: u32) -> bool {
    matches!(ip, IpAddr::V6(v6) if flags.get(v6).is_some_and(|flags| flags & bits != 0))
}

/// Global, then unique-local, then link-local; a lasting one before one that will go. An IPv4 address of a private range
/// is as good as a global one: in a guest it is what reaches it.
fn worth(ip: &IpAddr, flags: &HashMap<Ipv6Addr, u32>) -> (u8, bool) {
    let scope = match ip {
        IpAddr::V4(v4) => 3 * u8::from(v4.is_link_local()),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => 3,
        IpAddr::V6(v6) => u8::from(v6.is_unique_local()),
    };
    (scope, has(flags, ip, TEMPORARY | DEPRECATED))
}

/// `proc_net(5)`: address, interface index, prefix length, scope, flags, name.
fn inet6_flags(text: &str) -> HashMap<Ipv6Addr, u32> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        Some((Ipv6Addr::from_bits(address), u32::from_str_radix(words.nth(3)?, 16).ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Interfaces that a default route leaves by, with its metric. An IPv6 route counts after every IPv4 one of the same
/// metric, because it comes later in the list.
fn default_routes(v4: &str, v6: &str) -> Vec<(String, u32)> {
    const UP: u32 = 0x1;
    const REJECT: u32 = 0x200;
    let usable = |flags: u32| flags & UP != 0 && flags & REJECT == 0;
    // Iface Destination Gateway Flags RefCnt Use Metric Mask …, numbers in hexadecimal but for the metric.
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let default = *words.get(1)? == "00000000" && *words.get(7)? == "00000000";
        let flags = u32::from_str_radix(words.get(3)?, 16).ok()?;
        (default && usable(flags)).then(|| Some((words.first()?.to_string(), words.get(6)?.parse().ok()?)))?
    });
    // Destination prefix source prefix next-hop metric refcnt use flags name, all in hexadecimal.
    let v6 = v6.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let default = words.first()?.bytes().all(|digit| digit == b'0') && *words.get(1)? == "00";
        let flags = u32::from_str_radix(words.get(8)?, 16).ok()?;
        let metric = u32::from_str_radix(words.get(5)?, 16).ok()?;
        let name = *words.get(9)?;
        (default && usable(flags) && name != "lo").then(|| (name.to_owned(), metric))
    });
    v4.chain(v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, metric: Option<u32>, addresses: &[&str]) -> Found {
        let interface = Interface { name: name.into(), up: true, ..Interface::default() };
        let addresses = addresses.iter().map(|text| (text.parse().unwrap(), 64)).collect();
        Found { interface, metric, addresses }
    }

    #[test]
    fn the_default_routes_interface_comes_first_and_containers_last() {
        let ranked = ranked(
            vec![
                found("docker0", None, &["172.17.0.1"]),
                found("eth1", Some(200), &[]),
                found("enp0s1", Some(100), &[]),
                found("veth12", None, &[]),
                found("wg0", None, &[]),
            ],
            &HashMap::new(),
        );
        let names: Vec<_> = ranked.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["enp0s1", "eth1", "wg0", "docker0", "veth12"]);
        assert!(ranked[0].default_route && !ranked[2].default_route);
    }

    #[test]
    fn addresses_that_reach_further_and_last_longer_come_first() {
        let flags = inet6_flags(
            "20010db8000000000000000000000001 02 40 00 01     eth0\n\
             20010db8000000000000000000000003 02 40 00 40     eth0\n",
        );
        let all = [
            "fe80::1",
            "fd00::1",
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::3",
            "192.168.64.2",
            "169.254.0.9",
        ];
        let ranked = ranked(vec![found("eth0", None, &all)], &flags);
        assert_eq!(
            ranked[0].addresses,
            [
                "192.168.64.2/64",
                "2001:db8::2/64",
                "2001:db8::1/64",
                "fd00::1/64",
                "169.254.0.9/64",
                "fe80::1/64"
            ]
        );
    }

    #[test]
    fn default_routes_are_read_from_both_tables() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0140A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth1\t0040A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth2\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        );
        assert_eq!(default_routes(v4, &v6), [("eth0".into(), 100), (String::from("eth2"), 1024)]);
    }
}
