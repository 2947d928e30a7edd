//! The figures for people.

use service::status::table::{Column, Pair, grid, pairs};

use super::figures::{Figures, Partition, View};

const PARTITIONS: [Column; 9] = [
    Column::Text("topic"),
    Column::Number("partition"),
    Column::Number("position"),
    Column::Number("end"),
    Column::Number("lag"),
    Column::Number("lag seconds"),
    Column::Number("dead letters"),
    Column::Number("epoch"),
    Column::Text("owner"),
];

const VIEWS: [Column; 4] = [
    Column::Text("view"),
    Column::Text("topics"),
    Column::Text("state"),
    Column::Text("rebuild"),
];

/// Where everything is, then a line for each partition with the sums below, then a line for each view.
pub(super) fn table(figures: &Figures) -> String {
    let mut lines: Vec<Pair> = vec![
        (
            "database",
            format!("{} at {}", figures.postgres.database, figures.postgres.address),
        ),
        ("kafka", figures.kafka.address.clone()),
    ];
    let group = &figures.group;
    let members = match (&group.members, &group.state) {
        (Some(members), Some(state)) => format!("{members} members, {state}"),
        (Some(_), None) => "no members, and kafka knows no such group".to_owned(),
        (None, _) => "kafka does not tell its members".to_owned(),
    };
    lines.push(("group", format!("{}, {members}", group.name)));
    let builder = figures.builder.as_ref();
    // The builder may run on another machine, or in another container.
    if let Some((builder, is_ready)) = builder.and_then(|builder| Some((builder, builder.is_ready?))) {
        let says = if is_ready { "ready" } else { "not ready" };
        lines.push(("builder's process", format!("{}: {says}", builder.address)));
    }
    let partitions: Vec<Vec<String>> = figures.partitions.iter().map(partition_cells).collect();
    let views: Vec<Vec<String>> = figures.views.iter().map(view_cells).collect();
    let total = &figures.total;
    let sums = format!(
        "lag in all: {}, oldest: {} s, dead letters: {}",
        known(total.lag_events),
        seconds(total.lag_seconds),
        known(total.dead_letters)
    );
    format!(
        "{}\n{}{sums}\n\n{}",
        pairs(&lines),
        grid(&PARTITIONS, &partitions),
        grid(&VIEWS, &views)
    )
}

fn known(number: Option<i64>) -> String {
    number.map_or_else(|| "?".to_owned(), |number| number.to_string())
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds:.1}"))
}

fn partition_cells(partition: &Partition) -> Vec<String> {
    let position = partition.position_offset;
    let end = partition.end_offset;
    vec![
        partition.topic.clone(),
        partition.partition.to_string(),
        position.map_or_else(|| "beginning".to_owned(), |offset| offset.to_string()),
        end.map_or_else(|| partition.state.word().to_owned(), |offset| offset.to_string()),
        known(partition.lag_events),
        seconds(partition.lag_seconds),
        partition.dead_letters.to_string(),
        partition.epoch.to_string(),
        partition.owner.clone(),
    ]
}

fn view_cells(view: &View) -> Vec<String> {
    let state = match (&view.pause, &view.sql_md5) {
        (Some(pause), _) => format!("paused since {}", pause.since),
        (None, Some(_)) => "kept".to_owned(),
        (None, None) => "not there yet".to_owned(),
    };
    let rebuild = view.rebuild.as_ref().map_or_else(String::new, |rebuild| {
        let who = if rebuild.is_running {
            "filled"
        } else {
            "filled by nobody"
        };
        format!(
            "{} {who}, at {} of {} offsets",
            rebuild.generation, rebuild.filled_offsets, rebuild.live_offsets
        )
    });
    vec![view.view.clone(), view.topics.join(", "), state, rebuild]
}
