//! `hospes ip`

use hospes_protocol::info::Info;

/// The guest's addresses without their prefix lengths, the one to use first: of the default route's interface before
/// others, global before link-local. Loopback is left out.
pub fn addresses(info: &Info) -> impl Iterator<Item = String> {
    let mut found: Vec<(u8, String)> = Vec::new();
    for interface in info.interfaces.iter().filter(|interface| interface.up) {
        for text in &interface.addresses {
            let bare = text.split('/').next().unwrap_or_default();
            let Ok(address) = bare.parse::<std::net::IpAddr>() else { continue };
            let link_local = match address {
                std::net::IpAddr::V4(v4) => v4.is_link_local(),
                std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
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
