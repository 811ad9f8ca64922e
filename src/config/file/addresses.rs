//! How the addresses of a configuration go together: its listeners with each other, and with its upstreams.

use super::{ConfigFile, Resolver};
use crate::config::Config;
use crate::config::url::Url;

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
        self.check_overlaps();
        self.check_loops(config, file);
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

    /// A request that comes back to the listener that it came from would do so until no descriptor is left, and one that sends
    /// spans makes a further span.
    fn check_loops(&self, config: &Config, file: &ConfigFile<'_>) {
        let own = |urls: &[Url]| {
            let listen = config.listen.iter().map(|listen| &listen.address);
            let mut own = listen.chain([&config.admin]);
            own.find(|own| urls.iter().any(|url| url.destination.reaches(own)))
                .cloned()
        };
        for upstream in &config.upstreams {
            if let Some(own) = own(&upstream.urls) {
                let message = format!(
                    "the upstream is this proxy itself, which listens on `{own}`: a request would come back again and again"
                );
                self.errors.add(upstream.location, message);
            }
        }
        let collector = config.traces.as_ref().map(|traces| &traces.endpoint);
        if let Some(own) = collector.and_then(|url| own(std::slice::from_ref(url))) {
            let message = format!(
                "the collector of `traces` is this proxy itself, which listens on `{own}`: spans would make further spans"
            );
            self.errors.add(file.traces.location(), message);
        }
    }
}
