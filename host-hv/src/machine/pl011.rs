//! The serial port, as a state machine: PL011, "`PrimeCell` UART" (Arm DDI 0183G).
//!
//! It differs from the real one in two ways that drivers do not see: bytes take no time, and its buffers are longer than
//! its FIFOs. What interrupts is the state of the buffers and not its change, so that none is ever missed.

use std::collections::VecDeque;

/// How many bytes may wait to be sent, before the guest is told to wait.
const SEND_MAX: usize = 4096;
/// How many bytes may wait to be read by the guest.
const RECEIVE_MAX: usize = 256;

// Registers, by offset (section 3.2).
const DR: u64 = 0x000;
const FR: u64 = 0x018;
const ILPR: u64 = 0x020;
const IBRD: u64 = 0x024;
const FBRD: u64 = 0x028;
const LCR_H: u64 = 0x02c;
const CR: u64 = 0x030;
const IFLS: u64 = 0x034;
const IMSC: u64 = 0x038;
const RIS: u64 = 0x03c;
const MIS: u64 = 0x040;
const PERIPHERAL_ID: u64 = 0xfe0;

// Flags (3.3.3).
const FR_RECEIVE_EMPTY: u16 = 1 << 4;
const FR_SEND_FULL: u16 = 1 << 5;
const FR_RECEIVE_FULL: u16 = 1 << 6;
const FR_SEND_EMPTY: u16 = 1 << 7;

// Interrupts (3.3.10).
const RECEIVED: u16 = 1 << 4;
const SENT: u16 = 1 << 5;
const RECEIVE_TIMEOUT: u16 = 1 << 6;

/// Peripheral and cell identification, one byte to a register (3.3.14, 3.3.15): a PL011 of revision r1p5.
const IDENTITY: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The port.
#[derive(Debug)]
pub struct Pl011 {
    sending: VecDeque<u8>,
    received: VecDeque<u8>,
    /// Which interrupts the guest wants.
    mask: u16,
    /// What only the guest reads again.
    low_power: u16,
    divisor: u16,
    fraction: u16,
    line_control: u16,
    control: u16,
    levels: u16,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self {
            sending: VecDeque::new(),
            received: VecDeque::new(),
            mask: 0,
            low_power: 0,
            divisor: 0,
            fraction: 0,
            line_control: 0,
            // As after a reset: both directions on, the port itself off.
            control: 0x300,
            levels: 0x12,
        }
    }
}

impl Pl011 {
    /// A register's value.
    pub fn read(&mut self, offset: u64) -> u16 {
        match offset {
            DR => self.received.pop_front().map_or(0, u16::from),
            FR => self.flags(),
            ILPR => self.low_power,
            IBRD => self.divisor,
            FBRD => self.fraction,
            LCR_H => self.line_control,
            CR => self.control,
            IFLS => self.levels,
            IMSC => self.mask,
            RIS => self.pending(),
            MIS => self.pending() & self.mask,
            _ => {
                let id = offset.checked_sub(PERIPHERAL_ID).filter(|id| id.is_multiple_of(4));
                let id = id.and_then(|id| IDENTITY.get(usize::try_from(id / 4).ok()?));
                id.copied().map_or(0, u16::from)
            }
        }
    }

    /// Writes a register. A byte too many is lost, as in the real one.
    pub fn write(&mut self, offset: u64, value: u16) {
        match offset {
            DR if self.sending.len() < SEND_MAX => self.sending.push_back(value.to_le_bytes()[0]),
            ILPR => self.low_power = value & 0xff,
            IBRD => self.divisor = value,
            FBRD => self.fraction = value & 0x3f,
            LCR_H => self.line_control = value & 0xff,
            CR => self.control = value,
            IFLS => self.levels = value & 0x3f,
            IMSC => self.mask = value & 0x7ff,
            // Clearing an interrupt changes nothing: it is there for as long as its cause.
            _ => (),
        }
    }

    /// Whether the interrupt line is high.
    #[must_use]
    pub fn interrupts(&self) -> bool {
        self.pending() & self.mask != 0
    }

    /// How many bytes the guest can be given.
    #[must_use]
    pub fn room(&self) -> usize {
        RECEIVE_MAX - self.received.len()
    }

    /// Gives the guest bytes, [`room`](Self::room) of them at most. Returns how many it took.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.received.extend(&bytes[..taken]);
        taken
    }

    /// Takes what the guest has sent.
    pub fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sending).into()
    }

    /// Whether [`take_sent`](Self::take_sent) has something.
    #[must_use]
    pub fn has_sent(&self) -> bool {
        !self.sending.is_empty()
    }

    fn flags(&self) -> u16 {
        let flag = |on, flag| if on { flag } else { 0 };
        flag(self.received.is_empty(), FR_RECEIVE_EMPTY)
            | flag(self.room() == 0, FR_RECEIVE_FULL)
            | flag(self.sending.is_empty(), FR_SEND_EMPTY)
            | flag(self.sending.len() >= SEND_MAX, FR_SEND_FULL)
    }

    fn pending(&self) -> u16 {
        let received = if self.received.is_empty() { 0 } else { RECEIVED | RECEIVE_TIMEOUT };
        let sent = if self.sending.len() <= SEND_MAX / 2 { SENT } else { 0 };
        received | sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_sent_in_order_and_a_full_port_says_so() {
        let mut port = Pl011::default();
        for byte in b"hello" {
            port.write(DR, u16::from(*byte) | 0x100);
        }
        assert_eq!(port.take_sent(), b"hello");
        for _ in 0..SEND_MAX {
            assert_eq!(port.read(FR) & FR_SEND_FULL, 0);
            port.write(DR, 0x78);
        }
        assert_eq!(port.read(FR) & (FR_SEND_FULL | FR_SEND_EMPTY), FR_SEND_FULL);
        port.write(DR, 0x79);
        assert_eq!(port.take_sent().len(), SEND_MAX);
        assert_eq!(port.read(FR) & (FR_SEND_FULL | FR_SEND_EMPTY), FR_SEND_EMPTY);
    }

    #[test]
    fn the_line_is_high_while_the_guest_wants_to_know_and_there_is_something() {
        let mut port = Pl011::default();
        assert_eq!(port.receive(b"ab"), 2);
        assert!(!port.interrupts());
        port.write(IMSC, RECEIVED);
        assert!(port.interrupts());
        assert_eq!(port.read(MIS), RECEIVED);
        // Acknowledged with bytes left: still high.
        port.write(0x044, 0x7ff);
        assert!(port.interrupts());
        assert_eq!([port.read(DR), port.read(DR), port.read(DR)], [0x61, 0x62, 0]);
        assert!(!port.interrupts());
        port.write(IMSC, SENT);
        assert!(port.interrupts());
        for _ in 0..=SEND_MAX / 2 {
            port.write(DR, 0x78);
        }
        assert!(!port.interrupts());
        port.take_sent();
        assert!(port.interrupts());
    }

    #[test]
    fn a_guest_that_does_not_read_is_given_no_more_than_the_port_holds() {
        let mut port = Pl011::default();
        assert_eq!(port.receive(&[1; 1000]), RECEIVE_MAX);
        assert_eq!(port.receive(&[2; 10]), 0);
        assert_eq!(port.read(FR) & (FR_RECEIVE_FULL | FR_RECEIVE_EMPTY), FR_RECEIVE_FULL);
    }

    #[test]
    fn it_says_what_it_is() {
        let mut port = Pl011::default();
        let id: Vec<u16> = (0..8).map(|index| port.read(PERIPHERAL_ID + 4 * index)).collect();
        assert_eq!(id, IDENTITY.map(u16::from));
        assert_eq!([port.read(0xfdc), port.read(0xfe1), port.read(0x1000)], [0; 3]);
    }
}
