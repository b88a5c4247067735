//! Time: the guest asks the host what time it is, and sets its own clock by it.
//!
//! ```text
//! host                                        guest
//!  | TIME opened                                |
//!  |------------------------------------------->|
//!  |                          TIME_PROBE 1      |   t1, the guest's
//!  |<-------------------------------------------|
//!  |  received_ns, sent_ns    TIME_STAMP 1      |
//!  |------------------------------------------->|   t4, the guest's
//!  |                             … a few more   |
//!  |                          TIME_REPORT       |
//!  |<-------------------------------------------|
//!  | TIME resumed    (and again, whenever)      |
//! ```
//! The host says that there is an occasion, by `TIME` as often as it likes; the guest measures, does what its own settings
//! allow, and reports. In between it may probe by itself. What the host's clock says is taken from the exchange whose
//! round trip was shortest: the truth is within half of that round trip of it.

use serde::{Deserialize, Serialize};

use crate::open_enum;

open_enum! {
    /// Why the clock is looked at.
    pub struct Occasion(u8) {
        /// Somebody wants to know. Nothing is changed.
        LOOK = 0,
        /// The host has just connected, and stays.
        OPENED = 1,
        /// Somebody asks that the clock be set.
        ASKED = 2,
        /// The machine stood still for a while, and goes on.
        RESUMED = 3,
        /// The host slept.
        HOST_WOKE = 4,
        /// Somebody set the host's clock.
        HOST_SET = 5,
        /// The guest itself slept. In reports alone.
        GUEST_WOKE = 6,
        /// The guest's own timer. In reports alone.
        STEADY = 7,
    }
}

impl Occasion {
    /// Its words, as people and logs have them.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::LOOK => "somebody looked",
            Self::OPENED => "the host connected",
            Self::ASKED => "the host asked",
            Self::RESUMED => "the machine had stood still",
            Self::HOST_WOKE => "the host had slept",
            Self::HOST_SET => "the host's clock was set",
            Self::GUEST_WOKE => "this machine had slept",
            Self::STEADY => "time had passed",
            _ => "the host says so",
        }
    }

    /// Whether the guest's clock may have been torn: what it says is then no better than the host's word.
    #[must_use]
    pub const fn tears(self) -> bool {
        matches!(self, Self::ASKED | Self::RESUMED | Self::HOST_WOKE | Self::GUEST_WOKE)
    }
}

/// Look at the clock: the first frame of its connection, and each one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Why.
    pub occasion: Occasion,
}

/// What time is it?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Grows from probe to probe.
    pub serial: u64,
}

/// The answer to a [`Probe`], in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The probe's.
    pub serial: u64,
    /// When the probe was read.
    pub received_ns: u64,
    /// When this was written.
    pub sent_ns: u64,
}

open_enum! {
    /// Where the time comes from.
    pub struct Source(u8) {
        /// Exchanges on this connection.
        VSOCK = 0,
        /// A clock device of the hypervisor's.
        PTP = 1,
    }
}

open_enum! {
    /// Who is in charge of the guest's clock.
    pub struct Keeper(u8) {
        /// Nobody, so the guest tools are.
        NONE = 0,
        /// chrony.
        CHRONY = 1,
        /// systemd-timesyncd.
        TIMESYNCD = 2,
        /// Another time service, or nobody knows.
        OTHER = 3,
    }
}

open_enum! {
    /// What the guest's owner allows.
    pub struct Setting(u8) {
        /// The clock is left alone.
        OFF = 0,
        /// It is set once in a boot, and when somebody asks.
        ONCE = 1,
        /// What a sleep, a pause or a restore tore is mended.
        STEP_ONLY = 2,
        /// And where nobody else is in charge, the clock is kept right; chrony is fed.
        FULL = 3,
    }
}

impl Setting {
    /// Its word in the guest's policy.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::OFF => "off",
            Self::ONCE => "once",
            Self::STEP_ONLY => "step-only",
            Self::FULL => "full",
            _ => "unknown",
        }
    }
}

open_enum! {
    /// What was done.
    pub struct Deed(u8) {
        /// Nothing: it was right, or it is not ours to set.
        NOTHING = 0,
        /// It was set.
        STEPPED = 1,
        /// It is being brought there, faster or slower than time.
        SLEWED = 2,
        /// Who is in charge was told.
        FED = 3,
        /// Nothing: it is ahead by more than is slewed, and is not set back unless somebody asks.
        HELD = 4,
        /// It could not be set; the guest's journal says why.
        FAILED = 5,
    }
}

/// What came of an occasion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why the clock was looked at.
    pub occasion: Occasion,
    /// Nanoseconds that the host was ahead of the guest.
    pub offset_ns: i64,
    /// Nanoseconds by which that may be wrong, either way.
    pub error_ns: u64,
    /// Nanoseconds of the best exchange's round trip.
    pub round_trip_ns: u64,
    /// Where the time comes from.
    pub source: Source,
    /// Who is in charge.
    pub keeper: Keeper,
    /// Its unit, where it is one.
    pub by: String,
    /// Whether who is in charge takes the host's time from the guest tools.
    pub fed: bool,
    /// What the guest's owner allows.
    pub setting: Setting,
    /// What was done.
    pub deed: Deed,
    /// Nanoseconds by which the clock was set, or is being brought.
    pub moved_ns: i64,
    /// Nanoseconds that the host is ahead after that.
    pub left_ns: i64,
}
