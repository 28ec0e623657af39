//! The async forms of faults on the wire, with the feature `tokio`: the broker answers once they hold.
//!
//! What is asked is checked at once, and done by a thread of the runtime that may block: given up, it is done all the same.

use std::net::Ipv4Addr;

use super::{WireBuilder, set};
use crate::{
    error::Error,
    net::faults::Faults,
    network::Network,
    sandbox::{Sandbox, blocking},
};

/// Async forms, with the feature `tokio`.
impl Network {
    /// As [`partition`](Self::partition).
    ///
    /// # Errors
    /// As [`partition`](Self::partition).
    pub async fn partition_async(&self, one: &Sandbox, other: &Sandbox) -> Result<(), Error> {
        let pair = (self.address_of(one)?, self.address_of(other)?);
        self.part_later(pair, false).await
    }

    /// As [`partition_one_way`](Self::partition_one_way).
    ///
    /// # Errors
    /// As [`partition`](Self::partition).
    pub async fn partition_one_way_async(&self, from: &Sandbox, to: &Sandbox) -> Result<(), Error> {
        let pair = (self.address_of(from)?, self.address_of(to)?);
        self.part_later(pair, true).await
    }

    async fn part_later(&self, pair: (Ipv4Addr, Ipv4Addr), one_way: bool) -> Result<(), Error> {
        let network = self.clone();
        blocking(move || set(&network, "part", pair, one_way, Some(Faults::PARTED))).await
    }

    /// As [`heal`](Self::heal).
    ///
    /// # Errors
    /// As [`heal`](Self::heal).
    pub async fn heal_async(&self) -> Result<(), Error> {
        let network = self.clone();
        blocking(move || network.heal()).await
    }
}

/// Async forms, with the feature `tokio`.
impl WireBuilder<'_> {
    /// As [`apply`](Self::apply).
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn apply_async(self) -> Result<(), Error> {
        let faults = Some(self.faults);
        self.set_later("set faults between", faults).await
    }

    /// As [`heal`](Self::heal).
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn heal_async(self) -> Result<(), Error> {
        self.set_later("heal the link of", None).await
    }

    async fn set_later(self, doing: &'static str, faults: Option<Faults>) -> Result<(), Error> {
        let (network, pair, one_way) = (self.network.clone(), self.checked()?, self.one_way);
        blocking(move || set(&network, doing, pair, one_way, faults)).await
    }
}
