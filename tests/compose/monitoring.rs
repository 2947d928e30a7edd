//! The profile `monitoring` of docker-compose.yml. Its images are not started: a machine without a registry has none of them.

use serde_json::Value;

use super::project::Stack;

/// The services of the profile, with the ports that they publish.
const SERVICES: [(&str, &str); 2] = [("prometheus", "9090"), ("grafana", "3000")];

#[test]
fn the_profile_monitoring_is_valid_and_reached_from_this_machine_alone() {
    let stack = Stack::copy();
    let services = |line: &str| -> Value {
        let text = stack.run(line);
        serde_json::from_str::<Value>(&text).expect("JSON")["services"].take()
    };
    let usual = services("docker compose config --format json");
    let services = services("docker compose --profile monitoring config --format json");
    for (name, port) in SERVICES {
        assert!(usual[name].is_null(), "{name} is started without being asked for");
        let service = &services[name];
        let published: Vec<(&str, &str)> = service["ports"]
            .as_array()
            .expect("ports")
            .iter()
            .filter_map(|port| Some((port["host_ip"].as_str()?, port["published"].as_str()?)))
            .collect();
        assert_eq!(published, [("127.0.0.1", port)], "{name}");
        let mounted = service["volumes"].as_array().expect("volumes").iter();
        for volume in mounted.filter(|volume| volume["type"] == "bind") {
            let source = volume["source"].as_str().expect("a source");
            assert!(std::path::Path::new(source).exists(), "{name} mounts {source}");
            assert_eq!(volume["read_only"], true, "{name} mounts {source}");
        }
    }
}
