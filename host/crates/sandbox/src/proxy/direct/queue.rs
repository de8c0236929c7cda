//! The packets of one flow that its task has not taken yet.
//!
//! # Invariants
//! - It holds a number of bytes at most, and what comes beyond is lost, as on a network.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The most bytes that wait, which is more than a window of TCP has.
const MAX_BYTES: usize = 192 << 10;
/// What a packet costs beside its bytes.
const OF_EACH: usize = 128;

#[derive(Default)]
pub(super) struct PacketQueue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl PacketQueue {
    pub(super) fn push(&self, packet: &[u8]) {
        let mut waiting = self.waiting.lock();
        let bytes = waiting.bytes + packet.len() + OF_EACH;
        if bytes <= MAX_BYTES {
            waiting.bytes = bytes;
            waiting.packets.push_back(packet.to_vec());
            self.arrived.notify_one();
        }
    }

    /// All that wait, in their order.
    pub(super) fn take(&self) -> VecDeque<Vec<u8>> {
        std::mem::take(&mut *self.waiting.lock()).packets
    }

    /// Waits until there may be packets. For one task.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_takes_is_bounded_however_small_the_packets_are() {
        let queue = PacketQueue::default();
        for _ in 0..MAX_BYTES {
            queue.push(&[]);
        }
        queue.arrived().await;
        assert_eq!(queue.take().len(), MAX_BYTES / OF_EACH);
        queue.push(&[0; 60_000]);
        assert_eq!(queue.take().len(), 1, "there is room again");
    }
}
