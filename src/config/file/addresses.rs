//! How the addresses of a configuration go together: its listeners with each other, and with its upstreams.

use super::{ConfigFile, Resolver};
use crate::config::Config;
use crate::config::address::SocketAddress;

impl Resolver<'_> {
    pub(super) fn check_addresses(&self, config: &Config, file: &ConfigFile<'_>) {
        let mut listen = config.listen.iter();
        if listen.any(|listen| listen.address == config.admin) {
            let location = if file.admin.is_given() {
                file.admin.location()
            } else {
                file.listen.location()
            };
            let both = format!("`admin` and `listen` are both `{}`", config.admin);
            self.errors.add(location, both);
        }
        let listen = config.listen.iter().map(|listen| &listen.address);
        let mut paths = listen
            .chain([&config.admin])
            .filter_map(SocketAddress::unix_path);
        let upgrade = config.server.upgrade_socket.as_deref();
        if upgrade.is_some_and(|upgrade| paths.any(|path| path == upgrade)) {
            let twice = "`upgrade_socket` is the socket of a listener too";
            self.errors.add(file.server.location(), twice);
        }
        self.check_overlaps();
        self.check_loops(config);
    }

    /// An unspecified address has all others of its port.
    fn check_overlaps(&self) {
        let addresses = self.addresses.borrow();
        for (at, (location, address)) in addresses.iter().enumerate() {
            let mut before = addresses[..at].iter().map(|(_, before)| before);
            if let Some(other) = before.find(|before| before.overlaps(address)) {
                let message = format!(
                    "`{address}` and `{other}` cannot both be listened on: one of them has the other in it"
                );
                self.errors.add(*location, message);
            }
        }
    }

    /// A request that comes back to the listener that it came from would do so until no descriptor is left.
    fn check_loops(&self, config: &Config) {
        for upstream in &config.upstreams {
            let listen = config.listen.iter().map(|listen| &listen.address);
            let mut own = listen.chain([&config.admin]);
            let is_reached = |own: &&SocketAddress| {
                let mut urls = upstream.urls.iter();
                urls.any(|url| url.destination.reaches(own))
            };
            if let Some(own) = own.find(is_reached) {
                let message = format!(
                    "the upstream is this proxy itself, which listens on `{own}`: a request would come back again and again"
                );
                self.errors.add(upstream.location, message);
            }
        }
    }
}
