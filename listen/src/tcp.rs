//! One port on several addresses.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// Listens on each of these addresses at `port`, as ssh does on both of `localhost`'s. At least one must do: a kernel
/// without IPv6 has a name for its loopback all the same. Gives the port too, which the system has chosen where it was
/// zero. The ports of `addresses` do not count.
///
/// # Errors
/// The operating system's; `AddrInUse` where any of them is taken and the port was asked for, because half of a pair
/// that somebody else has is no listener. `NotFound` for no address at all.
pub fn each(
    addresses: impl IntoIterator<Item = SocketAddr>,
    port: u16,
) -> io::Result<(Vec<TcpListener>, u16)> {
    let (mut listeners, mut bound, mut first) = (Vec::new(), port, None);
    for mut address in addresses {
        address.set_port(bound);
        match TcpListener::bind(address) {
            Ok(listener) => {
                bound = listener.local_addr()?.port();
                listeners.push(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port > 0 => return Err(error),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    match first {
        Some(error) if listeners.is_empty() => Err(error),
        None if listeners.is_empty() => {
            Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
        }
        _ => Ok((listeners, bound)),
    }
}

/// Listens on every address there is. One socket on the IPv6 wildcard takes IPv4's callers too.
///
/// # Errors
/// As [`each`].
pub fn everywhere(port: u16) -> io::Result<(Vec<TcpListener>, u16)> {
    match each([(Ipv6Addr::UNSPECIFIED, port).into()], port) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse || port == 0 => {
            each([(Ipv4Addr::UNSPECIFIED, port).into()], port).map_err(|_| error)
        }
        bound => bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpStream, ToSocketAddrs};

    #[test]
    fn localhost_is_every_loopback_at_one_port() {
        let (listeners, port) = each(("localhost", 0).to_socket_addrs().unwrap(), 0).unwrap();
        assert!(port > 0 && !listeners.is_empty());
        for listener in &listeners {
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback() && address.port() == port);
        }
        let again = each([(Ipv4Addr::LOCALHOST, 0).into()], port);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(each([], 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn everywhere_is_the_loopback_too() {
        let (listeners, port) = everywhere(0).unwrap();
        assert_eq!(listeners.len(), 1);
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(everywhere(port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
