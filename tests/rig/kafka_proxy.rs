//! A proxy before a broker that knows where one request ends and the next begins. It can hold a request back, as a network can, and let it arrive
//! when nobody expects it any more.
//!
//! It is made for this case. An EndTxn is on its way, and the connection breaks. The client sends the EndTxn again over another connection, gets its
//! answer, and begins its next transaction. Now the first EndTxn arrives, and ends that next transaction.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// API keys, see <https://kafka.apache.org/protocol#protocol_api_keys>.
const PRODUCE: i16 = 0;
/// The first flexible version of Produce (KIP-482).
const PRODUCE_FLEXIBLE: i16 = 9;
const ADD_PARTITIONS_TO_TXN: i16 = 24;
/// From this version on, only brokers send AddPartitionsToTxn, and clients do not (KIP-890).
const ADD_PARTITIONS_OF_BROKERS: i16 = 4;
const END_TXN: i16 = 26;

/// How far the proxy is with the EndTxn that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Requests pass.
    Nothing,
    /// The next EndTxn will be held back.
    Wanted,
    /// An EndTxn of this transactional id is held back, and its connection was cut.
    Back(String),
    /// The client has sent the EndTxn again.
    Repeated(String),
    /// The next transaction of the id has begun. The proxy waits for its first records, and not for those of another producer.
    NextBegan(String),
    /// The held EndTxn has arrived after the first records of the next transaction. The number is the broker's error code, 0 for none.
    Arrived(i16),
}

/// A listening proxy. Dropping it does not cut its connections: they end with the runtime.
#[derive(Debug)]
pub struct KafkaProxy {
    held: watch::Receiver<Held>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    broker: u16,
    held: watch::Sender<Held>,
    request: Mutex<Option<HeldRequest>>,
    /// Records, partitions and ends of transactions pass one at a time, so that the held EndTxn arrives between two of them.
    pass: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct HeldRequest {
    frame: Vec<u8>,
    to_broker: OwnedWriteHalf,
    from_broker: OwnedReadHalf,
}

impl KafkaProxy {
    /// Starts a proxy on `port` of 127.0.0.1 for the broker on port `broker`.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(port: u16, broker: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .context("the proxy's port")?;
        let (sender, held) = watch::channel(Held::Nothing);
        let shared = Arc::new(Shared {
            broker,
            held: sender,
            request: Mutex::new(None),
            pass: tokio::sync::Mutex::new(()),
        });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&accepting)));
            }
        });
        Ok(Self { held, shared })
    }

    /// Holds the next EndTxn back until the transaction after it has sent its first records.
    pub fn hold_next_end_txn(&self) {
        self.shared.held.send_replace(Held::Wanted);
    }

    /// How far the proxy is with the EndTxn that it holds.
    #[must_use]
    pub fn held(&self) -> Held {
        self.held.borrow().clone()
    }
}

/// Passes requests and answers on. When a connection ends, the client makes another, so that is not an error here.
async fn serve(client: TcpStream, shared: Arc<Shared>) -> anyhow::Result<()> {
    let broker = TcpStream::connect(("127.0.0.1", shared.broker)).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let (cut, mut is_cut) = watch::channel(false);
    let (answered, mut answers_seen) = watch::channel(None);
    // A task of its own passes the answers on, so that the broker's side can be taken from it when a request is held.
    let answers = tokio::spawn(async move {
        loop {
            // A cut loses the part of an answer that was read already. On the connection to the coordinator no answer is under way before an EndTxn.
            let frame = tokio::select! {
                frame = read_frame(&mut from_broker) => frame,
                _ = is_cut.changed() => return from_broker,
            };
            let Ok(Some(frame)) = frame else {
                return from_broker;
            };
            if to_client.write_all(&frame).await.is_err() {
                return from_broker;
            }
            answered.send_replace(correlation_id(&frame, 4));
        }
    });
    while let Some(frame) = read_frame(&mut from_client).await? {
        let request = Request::read(&frame);
        let (key, transactional_id) = (request.key, request.transactional_id());
        // The broker also talks to itself through its advertised address. These requests must not wait.
        let adds_partitions = key == ADD_PARTITIONS_TO_TXN && request.version < ADD_PARTITIONS_OF_BROKERS;
        let _turn = if adds_partitions || key == PRODUCE || key == END_TXN {
            Some(shared.pass.lock().await)
        } else {
            None
        };
        let held = shared.held.borrow().clone();
        match (&held, key) {
            (Held::Wanted, END_TXN) => {
                cut.send_replace(true);
                let held = HeldRequest {
                    frame,
                    to_broker,
                    from_broker: answers.await?,
                };
                *shared.request.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
                shared.held.send_replace(Held::Back(transactional_id));
                return Ok(());
            }
            (Held::Back(id), END_TXN) if *id == transactional_id => {
                shared.held.send_replace(Held::Repeated(id.clone()));
            }
            (Held::Repeated(id), ADD_PARTITIONS_TO_TXN) if *id == transactional_id => {
                shared.held.send_replace(Held::NextBegan(id.clone()));
            }
            _ => {}
        }
        to_broker.write_all(&frame).await?;
        let sent = correlation_id(&frame, 8);
        if adds_partitions {
            // The coordinator needs a moment to write this down, and refuses an EndTxn until then (CONCURRENT_TRANSACTIONS).
            answers_seen.wait_for(|answered| *answered == sent).await?;
        }
        if key == PRODUCE && held == Held::NextBegan(transactional_id) {
            let request = shared.request.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(request) = request {
                // Once the broker has answered, the records are in the log.
                answers_seen.wait_for(|answered| *answered == sent).await?;
                let error = request.arrive().await?;
                shared.held.send_replace(Held::Arrived(error));
            }
        }
    }
    Ok(())
}

impl HeldRequest {
    /// Lets the held request arrive. Returns the error code of the broker's answer.
    async fn arrive(mut self) -> anyhow::Result<i16> {
        self.to_broker.write_all(&self.frame).await?;
        let answer = read_frame(&mut self.from_broker).await?.context("the broker hung up")?;
        // The answer has a length, a correlation id, a throttle time and an error code (EndTxn version 0 and 1).
        let code = answer.get(12..14).context("a short answer")?;
        Ok(i16::from_be_bytes([code[0], code[1]]))
    }
}

/// Reads a request with its length before it. `None`: the connection has ended.
pub(crate) async fn read_frame(from: &mut OwnedReadHalf) -> anyhow::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    if from.read_exact(&mut length).await.is_err() {
        return Ok(None);
    }
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    from.read_exact(&mut frame[4..]).await?;
    Ok(Some(frame))
}

/// The correlation id, which begins at byte `at`. A request and its answer have the same one.
pub(crate) fn correlation_id(frame: &[u8], at: usize) -> Option<[u8; 4]> {
    frame.get(at..at + 4)?.try_into().ok()
}

/// The beginning of a request: API key, version, correlation id, client id, and the body.
pub(crate) struct Request<'a> {
    pub(crate) key: i16,
    pub(crate) version: i16,
    pub(crate) client_id: &'a [u8],
    body: &'a [u8],
}

impl<'a> Request<'a> {
    pub(crate) fn read(frame: &'a [u8]) -> Self {
        let short = |at: usize| {
            frame
                .get(at..at + 2)
                .map_or(-1, |bytes| i16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let client_id_length = usize::try_from(short(12)).unwrap_or(0);
        Self {
            key: short(4),
            version: short(6),
            client_id: frame.get(14..14 + client_id_length).unwrap_or_default(),
            body: frame.get(14 + client_id_length..).unwrap_or_default(),
        }
    }

    /// The first field of the body, for the versions that librdkafka speaks. AddPartitionsToTxn and EndTxn have a string with a length of two bytes.
    /// Produce is flexible: one byte for no tagged fields, and one byte for the length plus 1 (two bytes if the name is longer than 126).
    fn transactional_id(&self) -> String {
        let length = match self.body.get(..2) {
            Some(&[_, length]) if self.key == PRODUCE && self.version >= PRODUCE_FLEXIBLE => {
                usize::from(length.saturating_sub(1))
            }
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => 0,
        };
        String::from_utf8_lossy(self.body.get(2..2 + length).unwrap_or_default()).into_owned()
    }
}
