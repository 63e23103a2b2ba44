//! Owns the exchange among processes, over the channels of `burn-communication`: all give to rank 0, which adds and
//! gives the sum back. It must never wait without a deadline, and never take two runs for one.
//!
//! It does not use the global level of burn's collective: that one answers the first sum after joining and no other,
//! since its barrier never forgets who has passed it.
//!
//! Each of the others has two channels to rank 0, one to give and one to take, and does both at once: a sum crosses
//! in pieces, and the first ones are on their way back while the last are still to be given. Rank 0 adds to its own
//! piece those of ranks 1, 2 and so on, in this order. With r ranks and a vector of b bytes, (r - 1) b cross rank 0's
//! network in each direction.

use std::fmt::Debug;
use std::sync::Once;
use std::time::Duration;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_communication::websocket::{WebSocket, WsServer};
use burn_communication::{CommunicationChannel, Message, Protocol, ProtocolClient, ProtocolServer};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::wire::{FAREWELL, Hello, pack, unpack};
use super::{CollectiveError, RankInfo};
use crate::DistributedEnv;

type Client = <WebSocket as Protocol>::Client;
type ClientChannel = <Client as ProtocolClient>::Channel;
type ServerChannel = <WsServer as ProtocolServer>::Channel;

/// Numbers in one message. The server refuses frames above 16 MiB; much smaller ones cross side by side.
const PIECE: usize = 1 << 18;
const RETRY: Duration = Duration::from_millis(100);
/// How long a farewell may take, and how long one is waited for.
const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// This process's channels to the others.
pub(super) struct Processes {
    info: RankInfo,
    side: Side,
    sums: u64,
    /// Last, so that the channels are closed before what drives them ends.
    runtime: Option<Runtime>,
}

enum Side {
    /// Rank 0. The others stand in their order, from rank 1 on.
    Hub {
        others: Vec<Other>,
        threads: usize,
        _serving: oneshot::Sender<()>,
    },
    Spoke {
        give: Box<ClientChannel>,
        take: Box<ClientChannel>,
        hub: String,
    },
}

/// Rank 0's channels to another process.
struct Other {
    give: ServerChannel,
    take: ServerChannel,
}

/// What went wrong with whom.
enum Trouble {
    Late(String),
    Lost(String, String),
}

impl Processes {
    /// Returns when all processes have joined.
    pub(super) fn join(world: &DistributedEnv, threads: usize, info: RankInfo) -> Result<Processes, CollectiveError> {
        keep_quiet();
        // The other threads of this process train: two are enough to move bytes.
        let runtime =
            Builder::new_multi_thread().worker_threads(2).thread_name("feedstock-communicator").enable_all().build();
        let runtime = runtime.map_err(CollectiveError::Thread)?;
        let Some(coordinator) = &world.coordinator else {
            return Err(CollectiveError::Config(
                "several processes, and no address where they meet: set MASTER_ADDR".to_owned(),
            ));
        };
        let deadline = Instant::now() + info.timeout;
        let side = runtime.block_on(async {
            if world.rank == 0 {
                meet(coordinator.port, world.world_size, threads, deadline).await
            } else {
                let hello = Hello { rank: world.rank, processes: world.world_size, threads };
                call(&format!("ws://{coordinator}"), &hello, deadline).await
            }
        });
        match side {
            Ok(side) => Ok(Processes { info, side, sums: 0, runtime: Some(runtime) }),
            Err(trouble) => {
                runtime.shutdown_background();
                Err(info.trouble(trouble, 0))
            }
        }
    }

    pub(super) fn sum<B: Backend>(
        &mut self,
        tensor: Tensor<B, 1>,
        device: &B::Device,
    ) -> Result<Tensor<B, 1>, CollectiveError> {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        let mine = tensor.into_data().convert_dtype(DType::F32).into_vec::<f32>();
        let mut values = mine.map_err(|error| {
            self.info.lost("its own numbers".to_owned(), self.sums, format!("they cannot be read: {error:?}"))
        })?;
        let (number, deadline) = (self.sums, Instant::now() + self.info.timeout);
        self.sums += 1;
        let Some(runtime) = &self.runtime else {
            return Err(self.info.lost("the other processes".to_owned(), number, "they were left".to_owned()));
        };
        let summed = runtime.block_on(async {
            match &mut self.side {
                Side::Hub { others, threads, .. } => {
                    let summed = add_up(others, *threads, number, &mut values, deadline).await;
                    if let Err(trouble) = &summed {
                        let whom = self.info.rank;
                        let text = format!("rank {whom} has ended the run: {}", trouble.text());
                        farewell(others.iter_mut().map(|other| &mut other.take), &text).await;
                    }
                    summed
                }
                Side::Spoke { give, take, hub } => swap(give, take, hub, number, &mut values, deadline).await,
            }
        });
        summed.map_err(|trouble| self.info.trouble(trouble, number))?;
        Ok(Tensor::from_data(TensorData::new(values, shape), (device, dtype)))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // What is sent is with the system already, and a runtime waits for its tasks otherwise.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl RankInfo {
    fn trouble(&self, trouble: Trouble, sums: u64) -> CollectiveError {
        match trouble {
            Trouble::Late(whom) => self.late(whom, self.timeout),
            Trouble::Lost(whom, why) => self.lost(whom, sums, why),
        }
    }
}

impl Trouble {
    fn text(&self) -> String {
        match self {
            Trouble::Late(whom) => format!("{whom} did not come in time"),
            Trouble::Lost(whom, why) => format!("{whom} was lost ({why})"),
        }
    }
}

/// Servers of `burn-communication` make themselves the subscriber of all traces, and print to standard output, where
/// nobody is that yet. Results go there.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    // An error says that there is a subscriber, which is as good.
    ONCE.call_once(|| drop(tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new())));
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Give,
    Take,
}

/// Rank 0 waits for all the others.
async fn meet(port: u16, processes: usize, threads: usize, deadline: Instant) -> Result<Side, Trouble> {
    let (arrived, mut arrivals) = mpsc::channel::<(Way, Option<Hello>, ServerChannel)>(64);
    let door = |way: Way| {
        let arrived = arrived.clone();
        async move |mut channel: ServerChannel| {
            if let Ok(Some(message)) = channel.recv().await {
                let _ = arrived.send((way, Hello::read(&message.data), channel)).await;
            }
        }
    };
    let server = WsServer::new(port).route("give", door(Way::Give)).route("take", door(Way::Take));
    let (serving, ended) = oneshot::channel::<()>();
    let mut server = tokio::spawn(server.serve(async { drop(ended.await) }));
    let mut gives: Vec<Option<ServerChannel>> = (1..processes).map(|_| None).collect();
    let mut takes: Vec<Option<ServerChannel>> = (1..processes).map(|_| None).collect();
    while gives.iter().chain(&takes).any(Option::is_none) {
        let next = tokio::select! {
            // It ends by itself only where it could not begin.
            ended = &mut server => {
                let why = format!("{ended:?}; another run may use that port: set MASTER_PORT to a free one");
                return Err(Trouble::Lost(format!("its own port {port}"), why));
            }
            next = timeout_at(deadline, arrivals.recv()) => next,
        };
        let Ok(Some((way, hello, mut channel))) = next else {
            let missing: Vec<_> =
                (1..processes).filter(|at| takes[at - 1].is_none() || gives[at - 1].is_none()).collect();
            let late = Trouble::Late(ranks(&missing, threads));
            farewell(takes.iter_mut().flatten(), &format!("rank 0 has ended the run: {}", late.text())).await;
            return Err(late);
        };
        let places = if way == Way::Give { &mut gives } else { &mut takes };
        match admit(hello, processes, threads, places) {
            Ok(place) => *place = Some(channel),
            Err(why) => farewell([&mut channel], &why).await,
        }
    }
    let mut others: Vec<_> =
        gives.into_iter().zip(takes).filter_map(|(give, take)| Some(Other { give: give?, take: take? })).collect();
    for (at, other) in others.iter_mut().enumerate() {
        let whom = || ranks(&[at + 1], threads);
        within(deadline, other.take.send(pack(0, 0, &[])), whom).await?;
    }
    Ok(Side::Hub { others, threads, _serving: serving })
}

/// The free place of somebody who comes, or why there is none.
fn admit(
    hello: Option<Hello>,
    processes: usize,
    threads: usize,
    places: &mut [Option<ServerChannel>],
) -> Result<&mut Option<ServerChannel>, String> {
    let Some(hello) = hello else {
        return Err("rank 0 does not understand the greeting: is it another version?".into());
    };
    if (hello.processes, hello.threads) != (processes, threads) {
        return Err(format!(
            "rank 0 is of a run of {processes} processes with {threads} ranks each, not {} with {}",
            hello.processes, hello.threads
        ));
    }
    match places.get_mut(hello.rank.wrapping_sub(1)) {
        Some(place) if place.is_none() => Ok(place),
        _ => Err(format!("rank {} of {processes} processes is there already, or no rank to come", hello.rank)),
    }
}

/// One of the others calls at rank 0.
async fn call(hub: &str, hello: &Hello, deadline: Instant) -> Result<Side, Trouble> {
    let name = format!("rank 0 at {}", hub.trim_start_matches("ws://"));
    let whom = || name.clone();
    let address = hub.parse().map_err(|why| Trouble::Lost(whom(), why))?;
    let mut give = connect(&address, "give", deadline).await.ok_or_else(|| Trouble::Late(whom()))?;
    within(deadline, give.send(hello.message()), whom).await?;
    let mut take = connect(&address, "take", deadline).await.ok_or_else(|| Trouble::Late(whom()))?;
    within(deadline, take.send(hello.message()), whom).await?;
    let late = || format!("{name}, which is there, and for the ranks that it waits for");
    let welcome = within(deadline, take.recv(), late).await?.ok_or_else(|| closed(whom()))?;
    unpack(&welcome.data, 0, 0).map_err(|why| Trouble::Lost(whom(), why))?;
    Ok(Side::Spoke { give: Box::new(give), take: Box::new(take), hub: name })
}

async fn connect(address: &burn_communication::Address, route: &str, deadline: Instant) -> Option<ClientChannel> {
    loop {
        let channel = timeout_at(deadline, Client::connect(address.clone(), route)).await.ok()?;
        if channel.is_some() {
            return channel;
        }
        timeout_at(deadline, sleep(RETRY)).await.ok()?;
    }
}

/// Rank 0's part of a sum.
async fn add_up(
    others: &mut [Other],
    threads: usize,
    number: u64,
    values: &mut [f32],
    deadline: Instant,
) -> Result<(), Trouble> {
    let length = values.len();
    for piece in values.chunks_mut(PIECE) {
        for (at, other) in others.iter_mut().enumerate() {
            let whom = || ranks(&[at + 1], threads);
            let given = within(deadline, other.give.recv(), whom).await?.ok_or_else(|| closed(whom()))?;
            let given = unpack(&given.data, number, length).map_err(|why| Trouble::Lost(whom(), why))?;
            if given.len() != size_of_val(piece) {
                return Err(Trouble::Lost(whom(), format!("a piece of {} bytes", given.len())));
            }
            for (sum, value) in piece.iter_mut().zip(given.as_chunks().0) {
                *sum += f32::from_le_bytes(*value);
            }
        }
        let summed = pack(number, length, piece).data;
        for (at, other) in others.iter_mut().enumerate() {
            within(deadline, other.take.send(Message::new(summed.clone())), || ranks(&[at + 1], threads)).await?;
        }
    }
    Ok(())
}

/// The part that one of the others has in a sum.
async fn swap(
    give: &mut ClientChannel,
    take: &mut ClientChannel,
    hub: &str,
    number: u64,
    values: &mut [f32],
    deadline: Instant,
) -> Result<(), Trouble> {
    let (length, whom) = (values.len(), || hub.to_owned());
    // No piece of the sum comes before its own was given, but that is nothing to rest on.
    let mine = values.to_vec();
    let giving = async {
        for piece in mine.chunks(PIECE) {
            if let Err(trouble) = within(deadline, give.send(pack(number, length, piece)), whom).await {
                // What rank 0 says on the other channel tells more.
                sleep(FAREWELL_TIME).await;
                return Err(trouble);
            }
        }
        Ok(())
    };
    let taking = async {
        for piece in values.chunks_mut(PIECE) {
            let sum = within(deadline, take.recv(), whom).await?.ok_or_else(|| closed(whom()))?;
            let sum = unpack(&sum.data, number, length).map_err(|why| Trouble::Lost(whom(), why))?;
            if sum.len() != size_of_val(piece) {
                return Err(Trouble::Lost(whom(), format!("a piece of {} bytes", sum.len())));
            }
            for (value, sum) in piece.iter_mut().zip(sum.as_chunks().0) {
                *value = f32::from_le_bytes(*sum);
            }
        }
        Ok(())
    };
    tokio::try_join!(giving, taking).map(|_| ())
}

/// Tells why there is no sum any more, to whoever still listens.
async fn farewell<'a>(channels: impl IntoIterator<Item = &'a mut ServerChannel>, why: &str) {
    for channel in channels {
        let mut data = pack(FAREWELL, 0, &[]).data.to_vec();
        data.extend(why.as_bytes());
        let _ = timeout(FAREWELL_TIME, channel.send(Message::new(data.into()))).await;
    }
}

/// Waits for a channel until the deadline.
async fn within<T, E: Debug>(
    deadline: Instant,
    work: impl Future<Output = Result<T, E>>,
    whom: impl Fn() -> String,
) -> Result<T, Trouble> {
    match timeout_at(deadline, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Trouble::Lost(whom(), format!("the connection broke: {error:?}"))),
        Err(_) => Err(Trouble::Late(whom())),
    }
}

fn closed(whom: String) -> Trouble {
    Trouble::Lost(whom, "it closed the connection".to_owned())
}

/// What ranks a process has, in words.
fn ranks(processes: &[usize], threads: usize) -> String {
    let names = processes.iter().map(|process| match threads {
        1 => format!("rank {process}"),
        _ => format!("ranks {} to {}", process * threads, (process + 1) * threads - 1),
    });
    names.collect::<Vec<_>>().join(", ")
}
