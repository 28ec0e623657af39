//! A plan on its way to a supervisor: in two pieces, each of which is read only where it is needed.
//!
//! A sandbox is made for a *kind*: everything that a plan says but what is done once the sandbox is there, which is its
//! [`Gift`]. Plans are of one kind where that piece is the same, byte by byte; and one for which a sandbox stands ready is
//! never put together: its gift is passed on as it came.

use std::{borrow::Cow, fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

use crate::{
    cgroup::Setting,
    net::ports::Published,
    plan::{FilterPlan, Isolation, Plan, ProgramPlan},
    step::Step,
};

/// A plan on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// How many more of its kind are made before they are asked for.
    pub(super) ahead: usize,
    pub(super) timeout: Option<Duration>,
    pub(super) network: Isolation,
    /// Whether an init can make it that was there before it was asked for: not one that is born in a control group, nor one
    /// for which the supervisor starts a program that leads out.
    pub(super) fits_spare: bool,
    /// Whether it has layers which all share, that may have to be made anew before.
    pub(super) shares: bool,
    pub(super) filter: FilterPlan,
    pub(super) kind: Packed,
    /// A [`Gift`].
    pub(super) gift: Packed,
}

/// What sandboxes of a kind have in common.
#[derive(Debug, Serialize, Deserialize)]
struct InCommon<'a> {
    network: Isolation,
    steps: Cow<'a, [Step]>,
    clock_offset: Option<Duration>,
    cgroup: Cow<'a, Option<Vec<Setting>>>,
}

/// What a sandbox that was made ahead is given: that in which its plan may differ from the one it was made by.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Gift<'a> {
    pub(super) program: Cow<'a, ProgramPlan>,
    /// These two are lines of the plan.
    publish: Cow<'a, [Published]>,
    timeout: Option<Duration>,
    stays: bool,
}

impl<'a> Gift<'a> {
    pub(super) fn of(plan: &'a Plan) -> Self {
        Self {
            program: Cow::Borrowed(&plan.program),
            publish: Cow::Borrowed(&plan.publish),
            timeout: plan.timeout,
            stays: plan.stays,
        }
    }

    pub(super) fn put_into(self, plan: &mut Plan) {
        plan.program = self.program.into_owned();
        plan.publish = self.publish.into_owned();
        plan.timeout = self.timeout;
        plan.stays = self.stays;
    }
}

impl Launch {
    /// # Errors
    /// Where it cannot be written, as what has no end.
    pub(crate) fn of(plan: &Plan) -> postcard::Result<Self> {
        let has = |is_one: fn(&Step) -> bool| plan.steps.iter().any(is_one);
        let kind = InCommon {
            network: plan.network,
            steps: Cow::Borrowed(&plan.steps),
            clock_offset: plan.clock_offset,
            cgroup: Cow::Borrowed(&plan.cgroup),
        };
        Ok(Self {
            ahead: plan.ahead,
            timeout: plan.timeout,
            network: plan.network,
            fits_spare: plan.network == Isolation::Own
                && plan.cgroup.is_none()
                && !has(|step| matches!(step, Step::Egress { .. })),
            shares: has(|step| matches!(step, Step::Shared { .. })),
            filter: plan.program.filter(),
            kind: Packed(postcard::to_stdvec(&kind)?),
            gift: Packed(postcard::to_stdvec(&Gift::of(plan))?),
        })
    }

    /// How long its pieces are.
    pub(super) fn size_bytes(&self) -> usize {
        self.kind.0.len() + self.gift.0.len()
    }

    /// The plan, but for its warnings, which are for who asked.
    ///
    /// # Errors
    /// What is no plan.
    pub(super) fn plan(&self) -> postcard::Result<Plan> {
        let kind: InCommon<'static> = postcard::from_bytes(&self.kind.0)?;
        let gift: Gift<'static> = postcard::from_bytes(&self.gift.0)?;
        Ok(Plan {
            network: kind.network,
            steps: kind.steps.into_owned(),
            publish: gift.publish.into_owned(),
            program: gift.program.into_owned(),
            timeout: gift.timeout,
            clock_offset: kind.clock_offset,
            cgroup: kind.cgroup.into_owned(),
            warnings: Vec::new(),
            ahead: self.ahead,
            stays: gift.stays,
        })
    }
}

/// A message within a message, which is copied as it is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Packed(pub(super) Vec<u8>);

impl Packed {
    /// Puts a gift into a plan of its kind. What is none changes nothing: whoever is given it says so.
    pub(super) fn put_into(&self, plan: &mut Plan) {
        if let Ok(gift) = postcard::from_bytes::<Gift<'static>>(&self.0) {
            gift.put_into(plan);
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Packed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Packed, E> {
                Ok(Packed(bytes.to_vec()))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}
