//! Which addresses a url that a server made up may lead to: public ones only.
//!
//! An image's url comes out of a reply, so whoever makes replies would choose what batchd connects to from
//! inside the operator's network: a metadata service, a router, a database. [`is_public`] is the filter;
//! [`names_no_closed_address`] applies it to addresses written into a url, [`PublicOnly`] to names. The
//! connection is made to the very addresses that passed, so a name that changes its mind between check and
//! use gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use url::Host;

/// IPv4 networks that are not the public internet (IANA's special-purpose registry), and Azure's
/// metadata address, which lies in public space. The other clouds' are in `169.254/16` and `100.64/10`.
const CLOSED_V4: [(Ipv4Addr, u32); 17] = [
    (Ipv4Addr::UNSPECIFIED, 8),            // this network
    (Ipv4Addr::new(10, 0, 0, 0), 8),       // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),    // carrier-grade NAT
    (Ipv4Addr::new(127, 0, 0, 0), 8),      // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // Azure's metadata
    (Ipv4Addr::new(169, 254, 0, 0), 16),   // link-local, metadata
    (Ipv4Addr::new(172, 16, 0, 0), 12),    // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),     // protocol assignments
    (Ipv4Addr::new(192, 0, 2, 0), 24),     // documentation
    (Ipv4Addr::new(192, 31, 196, 0), 24),  // AS112
    (Ipv4Addr::new(192, 88, 99, 0), 24),   // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),   // private
    (Ipv4Addr::new(198, 18, 0, 0), 15),    // benchmarks
    (Ipv4Addr::new(198, 51, 100, 0), 24),  // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),   // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),      // multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),      // reserved, broadcast
];

/// The only IPv6 space handed out so far (RFC 4291). Loopback, unique local (with AWS's metadata),
/// link-local and multicast all lie outside it.
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// What is closed within [`GLOBAL_V6`].
const CLOSED_V6: [(Ipv6Addr, u32); 5] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // protocol assignments, Teredo
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4: leads to any IPv4 address
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48), // AS112
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation
];

/// IPv6 spellings of an IPv4 address: mapped, and as a NAT64 gateway translates them.
const V4_IN_V6: [(Ipv6Addr, u32); 2] =
    [(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96), (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96)];

/// Whether `address` belongs to the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !CLOSED_V4.iter().any(|network| within_v4(v4, *network)),
        IpAddr::V6(v6) if V4_IN_V6.iter().any(|network| within_v6(v6, *network)) => {
            let [.., a, b, c, d] = v6.octets();
            is_public(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        IpAddr::V6(v6) => {
            within_v6(v6, GLOBAL_V6) && !CLOSED_V6.iter().any(|network| within_v6(v6, *network))
        }
    }
}

/// Whether `host` is a name, to be checked when it is resolved, or a public address.
pub(super) fn names_no_closed_address(host: Option<&Host<&str>>) -> bool {
    match host {
        Some(Host::Ipv4(address)) => is_public(IpAddr::V4(*address)),
        Some(Host::Ipv6(address)) => is_public(IpAddr::V6(*address)),
        Some(Host::Domain(_)) => true,
        None => false,
    }
}

const fn within_v4(address: Ipv4Addr, (network, prefix): (Ipv4Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (32 - prefix) == 0
}

const fn within_v6(address: Ipv6Addr, (network, prefix): (Ipv6Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()) >> (128 - prefix) == 0
}

/// A name that leads to no public address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not on the public internet")]
pub(super) struct NotPublic(pub(super) String);

/// The system's resolver, cut to public addresses. An address written into a url never comes here.
#[derive(Debug)]
pub(super) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(NotPublic(name.as_str().to_owned()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUBLIC: &[&str] = &[
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "104.18.6.192",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.15",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
    ];

    const CLOSED: &[&str] = &[
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];

    #[test]
    fn only_public_addresses_pass() {
        for address in PUBLIC {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in CLOSED {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn no_spelling_of_an_address_hides_it() {
        for (url, expected) in [
            ("https://1.1.1.1/a.png", true),
            ("https://files.example.com/a.png", true),
            ("http://localhost/a.png", true), // closed when it is resolved
            ("http://10.0.0.5/a.png", false),
            ("http://127.1/a.png", false),
            ("http://2130706433/a.png", false),
            ("http://0x7f.0.0.1/a.png", false),
            ("http://0177.0.0.1/a.png", false),
            ("http://127.0.0.1./a.png", false),
            ("http://%31%32%37.0.0.1/a.png", false),
            ("http://①②⑦.0.0.1/a.png", false),
            ("http://[::1]/a.png", false),
            ("http://[::ffff:169.254.169.254]/latest", false),
            ("http://169.254.169.254/latest/meta-data", false),
            ("file:///etc/passwd", false),
        ] {
            let url: url::Url = url.parse().unwrap();
            assert_eq!(names_no_closed_address(url.host().as_ref()), expected, "{url}");
        }
    }

    proptest! {
        #[test]
        fn no_spelling_opens_what_the_standard_library_calls_closed(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            let closed = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
                || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified();
            let mapped = IpAddr::V6(v4.to_ipv6_mapped());
            prop_assert!(!(closed && is_public(IpAddr::V4(v4))));
            prop_assert_eq!(is_public(mapped), is_public(IpAddr::V4(v4)));
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_home_has_no_address() {
        let Err(error) = PublicOnly.resolve("localhost".parse().unwrap()).await else {
            panic!("`localhost` resolved to a public address")
        };
        assert_eq!(error.downcast_ref::<NotPublic>(), Some(&NotPublic("localhost".to_owned())));
    }
}
