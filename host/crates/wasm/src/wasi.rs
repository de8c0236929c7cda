//! The WASI that a guest of another toolchain finds: one with nothing in it.
//!
//! A guest that imports none of it pays for none of it.
//!
//! # Invariants
//! - There is no file, no argument, no variable, no socket and no name to look up; standard input
//!   is at its end, and output becomes bounded lines of the host's log.
//! - The time is the call's own and stands still, and randomness follows from the call's seed, so
//!   the same call gives the same bytes.
//! - Nothing here ever waits: an operation that would have to returns an error that says so.

use futures::FutureExt;
use sha2::{Digest, Sha256};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{WasiCli, WasiCliCtxView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random, sockets};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsCtxView};
use wasmtime_wasi::{WasiCtx, async_trait};
use wasmtime_wasi_io::bindings::wasi::io;

use super::stdio::GuestOutput;

/// The interfaces offered, in any version 0.2; none of them leads anywhere.
pub(super) const INTERFACES: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// The most streams, errors and timers that one instance may hold.
const MOST_RESOURCES: usize = 1_000;
/// The most random bytes drawn at once. wasi-libc asks for 256 at a time.
const MOST_RANDOM: u64 = 64 << 10;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// The packages of these interfaces, for messages.
pub(super) fn packages() -> String {
    let mut packages: Vec<_> = INTERFACES
        .iter()
        .filter_map(|interface| interface.split('/').next())
        .collect();
    packages.dedup();
    packages.join(", ")
}

/// Whether an import, such as `wasi:io/poll@0.2.9`, belongs to this WASI.
pub(super) fn provides(import: &str) -> bool {
    let Some((interface, version)) = import.split_once('@') else {
        return false;
    };
    let patch = version.strip_prefix("0.2.").unwrap_or_default();
    !patch.is_empty()
        && patch.bytes().all(|byte| byte.is_ascii_digit())
        && INTERFACES.contains(&interface)
}

/// A call's time and random seed: everything a guest can observe that is not in its arguments. A
/// call that is given none happens at time 0, with seed 0.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CallClock {
    pub(super) now_ms: u64,
    pub(super) seed: u64,
}

/// One instance's WASI state.
pub(super) struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
    now_ms: u64,
    random: SeededRandom,
}

impl Wasi {
    pub(super) fn new(clock: CallClock, printed: &GuestOutput) -> Self {
        // A context is created empty; only TCP and UDP have to be disabled.
        let ctx = WasiCtx::builder()
            .stdout(printed.out())
            .stderr(printed.err())
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(MOST_RESOURCES);
        Self {
            ctx,
            table,
            now_ms: clock.now_ms,
            random: SeededRandom::new(clock.seed),
        }
    }

    fn cli(&mut self) -> WasiCliCtxView<'_> {
        WasiCliCtxView {
            ctx: self.ctx.cli(),
            table: &mut self.table,
        }
    }

    fn filesystem(&mut self) -> WasiFilesystemCtxView<'_> {
        WasiFilesystemCtxView {
            ctx: self.ctx.filesystem(),
            table: &mut self.table,
        }
    }

    fn sockets(&mut self) -> WasiSocketsCtxView<'_> {
        WasiSocketsCtxView {
            ctx: self.ctx.sockets(),
            table: &mut self.table,
        }
    }

    fn clock(&mut self) -> Clock<'_> {
        Clock {
            now_ms: self.now_ms,
            table: &mut self.table,
        }
    }
}

/// Store data with the WASI state of its instance.
pub(super) trait HasWasi: Send + 'static {
    /// The instance's WASI state.
    fn wasi(&mut self) -> &mut Wasi;
}

/// Adds all of [`INTERFACES`] to a linker.
pub(super) fn add_to_linker<T: HasWasi>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    let l = linker;
    cli::environment::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::exit::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::stderr::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::stdin::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::stdout::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(l, |data| data.wasi().cli())?;

    clocks::monotonic_clock::add_to_linker::<_, Clocks>(l, |data| data.wasi().clock())?;
    clocks::wall_clock::add_to_linker::<_, Clocks>(l, |data| data.wasi().clock())?;

    random::insecure::add_to_linker::<_, Random>(l, |data| &mut data.wasi().random)?;
    random::insecure_seed::add_to_linker::<_, Random>(l, |data| &mut data.wasi().random)?;
    random::random::add_to_linker::<_, Random>(l, |data| &mut data.wasi().random)?;

    io::error::add_to_linker::<_, Table>(l, |data| &mut data.wasi().table)?;
    io::streams::add_to_linker::<_, Table>(l, |data| &mut data.wasi().table)?;
    io::poll::add_to_linker::<_, Polls>(l, |data| Poll(&mut data.wasi().table))?;

    type Files = WasiFilesystem;
    filesystem::preopens::add_to_linker::<_, Files>(l, |data| data.wasi().filesystem())?;
    filesystem::types::add_to_linker::<_, Files>(l, |data| data.wasi().filesystem())?;

    type Net = WasiSockets;
    let released = sockets::network::LinkOptions::default();
    sockets::instance_network::add_to_linker::<_, Net>(l, |data| data.wasi().sockets())?;
    sockets::ip_name_lookup::add_to_linker::<_, Net>(l, |data| data.wasi().sockets())?;
    sockets::network::add_to_linker::<_, Net>(l, &released, |data| data.wasi().sockets())?;
    sockets::tcp::add_to_linker::<_, Net>(l, |data| data.wasi().sockets())?;
    sockets::tcp_create_socket::add_to_linker::<_, Net>(l, |data| data.wasi().sockets())?;
    sockets::udp::add_to_linker::<_, Net>(l, |data| data.wasi().sockets())?;
    sockets::udp_create_socket::add_to_linker::<_, Net>(l, |data| data.wasi().sockets())
}

struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

struct Clocks;

impl HasData for Clocks {
    type Data<'a> = Clock<'a>;
}

/// A clock that always shows the call's own time.
struct Clock<'a> {
    now_ms: u64,
    table: &'a mut ResourceTable,
}

impl Clock<'_> {
    fn nanos(&self) -> u64 {
        self.now_ms.saturating_mul(NANOS_PER_MILLI)
    }

    fn timer(&mut self, due: bool) -> wasmtime::Result<Resource<DynPollable>> {
        let timer = self.table.push(Timer { due })?;
        subscribe(self.table, timer)
    }
}

impl clocks::wall_clock::Host for Clock<'_> {
    fn now(&mut self) -> wasmtime::Result<clocks::wall_clock::Datetime> {
        let millis = u32::try_from(self.now_ms % 1_000)?;
        Ok(clocks::wall_clock::Datetime {
            seconds: self.now_ms / 1_000,
            nanoseconds: millis * 1_000_000,
        })
    }

    fn resolution(&mut self) -> wasmtime::Result<clocks::wall_clock::Datetime> {
        Ok(clocks::wall_clock::Datetime {
            seconds: 0,
            nanoseconds: 1_000_000,
        })
    }
}

impl clocks::monotonic_clock::Host for Clock<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.nanos())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(NANOS_PER_MILLI)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.timer(when <= self.nanos())
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.timer(duration == 0)
    }
}

/// A timer that is due now, or never: no time passes within a call.
struct Timer {
    due: bool,
}

#[async_trait]
impl Pollable for Timer {
    async fn ready(&mut self) {
        if !self.due {
            std::future::pending::<()>().await;
        }
    }
}

/// The error for a guest that wants to wait.
#[derive(Debug, thiserror::Error)]
#[error(
    "it wanted to wait, and the time stands still in a call: a policy gives the command `set-timer` instead"
)]
struct Waits;

struct Polls;

impl HasData for Polls {
    type Data<'a> = Poll<'a>;
}

/// As in `wasmtime-wasi-io`, except that what is not ready at once never will be.
struct Poll<'a>(&'a mut ResourceTable);

impl io::poll::Host for Poll<'_> {
    async fn poll(&mut self, list: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        let ready = io::poll::Host::poll(self.0, list).now_or_never();
        ready.unwrap_or_else(|| Err(Waits.into()))
    }
}

impl io::poll::HostPollable for Poll<'_> {
    async fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        io::poll::HostPollable::ready(self.0, pollable).await
    }

    async fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        let ready = io::poll::HostPollable::block(self.0, pollable).now_or_never();
        ready.unwrap_or_else(|| Err(Waits.into()))
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        io::poll::HostPollable::drop(self.0, pollable)
    }
}

struct Random;

impl HasData for Random {
    type Data<'a> = &'a mut SeededRandom;
}

/// Random bytes derived from a seed: SHA-256 over the seed and a counter, so that a session
/// replayed by a later version of this host draws the same. They are not secret, and nothing is
/// protected with them.
struct SeededRandom {
    seed: u64,
    blocks: u64,
    block: [u8; 32],
    used: usize,
}

impl SeededRandom {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            blocks: 0,
            block: [0; 32],
            used: 32,
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == self.block.len() {
                let block = Sha256::new()
                    .chain_update(b"lucid:wasi:random")
                    .chain_update(self.seed.to_le_bytes())
                    .chain_update(self.blocks.to_le_bytes());
                self.block = block.finalize().into();
                self.blocks += 1;
                self.used = 0;
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
    }

    fn bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        if length > MOST_RANDOM {
            wasmtime::bail!("it wanted {length} random bytes at once, and may have {MOST_RANDOM}");
        }
        let mut bytes = vec![0; usize::try_from(length)?];
        self.fill(&mut bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

impl random::random::Host for SeededRandom {
    fn get_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.bytes(length)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.number())
    }
}

impl random::insecure::Host for SeededRandom {
    fn get_insecure_random_bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        self.bytes(length)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.number())
    }
}

impl random::insecure_seed::Host for SeededRandom {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        Ok((self.number(), self.number()))
    }
}
