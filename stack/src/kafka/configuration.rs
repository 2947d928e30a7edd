//! The configuration files of a node, and its place in the cluster.

use std::fmt::Write as _;
use std::path::Path;

use super::write;
use crate::port;
use crate::random::Random;

const LOGGING: &str = "\
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %m (%c{1})%n
";
const TOOL_LOGGING: &str = "\
rootLogger.level = error
rootLogger.appenderRef.err.ref = err
appender.err.type = Console
appender.err.name = err
appender.err.target = SYSTEM_ERR
appender.err.layout.type = PatternLayout
appender.err.layout.pattern = %p %m%n
";
/// The log cleaner takes so much of the heap when a broker starts. Kafka's default of 128 MiB is half the heap of a cluster's node, and such a node
/// did not always start again ("Java heap space"). This is still enough for 600,000 records of a segment.
const CLEANER_BYTES: u32 = 16 * 1024 * 1024;
/// Internal topics have so many replicas, if there are so many brokers.
const REPLICAS_MAX: usize = 3;

/// The plan of a cluster, made before any node runs. Each node is a broker and a controller. The ids of the nodes count from 1.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(super) cluster_id: String,
    nodes: Vec<NodePorts>,
}

#[derive(Clone, Copy, Debug)]
struct NodePorts {
    client: u16,
    controller: u16,
}

/// A further listener of a node.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) port: u16,
}

impl Layout {
    /// Plans a cluster whose nodes have these ports for clients; 0 is a free port.
    ///
    /// # Errors
    /// No port is free.
    pub(crate) fn new(client_ports: &[u16]) -> anyhow::Result<Self> {
        let nodes = client_ports.iter().map(|&client| {
            Ok(NodePorts {
                client: port::given_or_free(client)?,
                controller: port::free()?,
            })
        });
        Ok(Self {
            cluster_id: cluster_id(),
            nodes: nodes.collect::<anyhow::Result<_>>()?,
        })
    }

    /// How many nodes there are.
    pub(super) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The port of node `id` for clients.
    pub(super) fn client_port(&self, id: usize) -> u16 {
        self.nodes[id - 1].client
    }

    /// `HOST:PORT` of every node for clients. Node `id` comes first.
    pub(super) fn bootstrap_servers(&self, id: usize) -> String {
        let count = self.nodes.len();
        let addresses = (0..count).map(|place| format!("127.0.0.1:{}", self.nodes[(id - 1 + place) % count].client));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// The text of `server.properties` for node `id`. If a name comes twice, the later line of `settings` counts.
    pub(super) fn server_properties(
        &self,
        id: usize,
        data: &Path,
        listeners: &[Listener],
        settings: &[(String, String)],
    ) -> String {
        let NodePorts { client, controller } = self.nodes[id - 1];
        let voters = (1..).zip(&self.nodes);
        let voters = voters.map(|(id, node)| format!("{id}@127.0.0.1:{}", node.controller));
        let voters = voters.collect::<Vec<_>>().join(",");
        let (mut further, mut protocols) = (String::new(), String::new());
        for Listener { name, protocol, port } in listeners {
            further += &format!(",{name}://localhost:{port}");
            protocols += &format!(",{name}:{protocol}");
        }
        let replicas = self.nodes.len().min(REPLICAS_MAX);
        let in_sync_min = replicas.saturating_sub(1).max(1);
        let mut text = format!(
            "process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}{further}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
log.dirs={data}
default.replication.factor={replicas}
min.insync.replicas={in_sync_min}
offsets.topic.replication.factor={replicas}
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync_min}
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
auto.create.topics.enable=false
log.cleaner.dedupe.buffer.size={CLEANER_BYTES}
",
            data = data.display()
        );
        for (name, value) in settings {
            // Writing to a String cannot fail.
            let _infallible = writeln!(text, "{name}={value}");
        }
        text
    }
}

/// Writes the log4j configurations for the node and for the command line tools.
///
/// # Errors
/// A file cannot be written.
pub(super) fn write_logging(directory: &Path) -> anyhow::Result<()> {
    write(&directory.join("logging.properties"), LOGGING)?;
    write(&directory.join("tool-logging.properties"), TOOL_LOGGING)
}

/// A new cluster id: 128 random bits in URL-safe base64 without padding, as Kafka writes ids. The 22nd digit has only two of the bits.
fn cluster_id() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = Random::from_entropy();
    let mut digit = |bound: u64, step: usize| {
        let index = usize::try_from(random.below(bound)).unwrap_or(0) * step;
        char::from(DIGITS[index])
    };
    // The first digit must not be a dash, because a tool would take the id for a flag.
    let mut id = String::from(digit(52, 1));
    id.extend((0..20).map(|_| digit(64, 1)));
    id.push(digit(4, 16));
    id
}
