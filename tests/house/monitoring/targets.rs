//! What Prometheus is told to scrape is what runs: services of docker-compose.yml at the ports of their images, and the ports of ./quickstart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::super::image_context::repository;

fn text_of(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// Job, host and port of each target of a configuration.
fn targets(path: &str) -> BTreeSet<(String, String, String)> {
    let text = text_of(path);
    let mut targets = BTreeSet::new();
    for job in text.split("  - job_name: ").skip(1) {
        let name = job.lines().next().unwrap_or_default().trim();
        for address in job.split("targets: [\"").skip(1) {
            let (host, port) = address
                .split('"')
                .next()
                .and_then(|address| address.split_once(':'))
                .expect("host:port");
            targets.insert((name.to_owned(), host.to_owned(), port.to_owned()));
        }
        if let Some((_, found)) = job.split_once("names: [") {
            let host = found.split(']').next().unwrap_or_default();
            let port = found.split("port: ").nth(1).and_then(|rest| rest.lines().next());
            targets.insert((name.to_owned(), host.to_owned(), port.expect("a port").to_owned()));
        }
    }
    assert!(targets.len() > 4, "{path}: {targets:?}");
    targets
}

/// For each service of docker-compose.yml that runs a program of ours for good, the image.
fn programs() -> BTreeMap<String, String> {
    let text = text_of("docker-compose.yml");
    let (_, services) = text.split_once("\nservices:\n").expect("services");
    let mut programs = BTreeMap::new();
    let mut service = String::new();
    let mut is_program = false;
    for line in services.lines() {
        if let Some(name) = line
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with([' ', '#']))
            .and_then(|rest| rest.strip_suffix(':'))
        {
            name.clone_into(&mut service);
            is_program = false;
        }
        is_program |= line.trim() == "<<: *program";
        if let Some(image) = line.trim().strip_prefix("image: outbox/").filter(|_| is_program) {
            programs.insert(service.clone(), image.to_owned());
        }
    }
    programs
}

/// The ports that the image of this program exposes.
fn ports_of_image(program: &str) -> Vec<String> {
    let text = text_of("Dockerfile");
    let stage = text.split("\nFROM ").find(|stage| {
        stage
            .lines()
            .next()
            .is_some_and(|line| line.ends_with(&format!(" AS {program}")))
    });
    let exposed = stage.unwrap_or_else(|| panic!("no image of {program}")).lines();
    let exposed = exposed.filter_map(|line| line.strip_prefix("EXPOSE "));
    exposed.flat_map(|ports| ports.split(' ').map(str::to_owned)).collect()
}

#[test]
fn every_service_that_runs_a_program_is_scraped_at_a_port_of_its_image() {
    let programs = programs();
    let targets = targets("deploy/monitoring/prometheus.yml");
    let known = |host: &str| programs.contains_key(host);
    let unknown: Vec<_> = targets.iter().filter(|(_, host, _)| !known(host)).collect();
    assert!(unknown.is_empty(), "no services: {unknown:?}");
    for (service, image) in &programs {
        let target = targets.iter().find(|(_, host, _)| host == service);
        let (job, _, port) = target.unwrap_or_else(|| panic!("{service} is not scraped"));
        assert_eq!(job, image, "the job of {service}");
        assert!(
            ports_of_image(image).contains(port),
            "{service} does not answer at {port}"
        );
    }
}

#[test]
fn the_quick_start_has_the_same_jobs_at_its_own_ports() {
    let jobs = |path: &str| -> Vec<String> { targets(path).into_iter().map(|(job, _, _)| job).collect() };
    assert_eq!(
        jobs("deploy/monitoring/prometheus-quickstart.yml"),
        jobs("deploy/monitoring/prometheus.yml")
    );
    let arguments = text_of("stack/src/bin/quickstart/arguments.rs");
    for (job, host, port) in targets("deploy/monitoring/prometheus-quickstart.yml") {
        assert_eq!(host, "localhost");
        let is_default = arguments.contains(&format!("default_value_t = {port}"));
        assert!(is_default, "{job} at {port}");
    }
}
