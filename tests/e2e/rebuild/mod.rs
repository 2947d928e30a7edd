//! Views that are rebuilt, added, changed and dropped while everything runs.

mod beside_the_live_view;
mod careful_reader;
mod documented_view;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rig::Workload;
use rig::rest::Rest;
use stack::pipeline::VIEWS_DATABASE;
use stack::{Pipeline, Program, checkout, eventually_ok};

use super::rows::{in_views, single};

const DEADLINE: Duration = Duration::from_secs(60);
const CHANGES_PER_SECOND: u32 = 100;
/// How many schemas and notes of unfinished rebuilds there are.
const LEFT_BEHIND: &str = "
    select count(*) from (
        select nspname from pg_namespace where nspname like '%\\_rebuild' or nspname like '%\\_replaced'
        union all select view from view_rebuilds) as left_behind";

/// A connection of the superuser to the views' database.
async fn connect(pipeline: &Pipeline) -> tokio_postgres::Client {
    let url = pipeline.database_url(VIEWS_DATABASE).expect("a URL");
    stack::postgres::connect(&url).await.expect("a connection")
}

/// Runs statements in the views' database as the superuser.
async fn run_sql(pipeline: &Pipeline, statements: &str) {
    connect(pipeline)
        .await
        .batch_execute(statements)
        .await
        .unwrap_or_else(|err| panic!("{statements}: {err}"));
}

/// The only value that the query gives in the views' database.
async fn query_text(pipeline: &Pipeline, query: &str) -> String {
    single(&in_views(pipeline, query).await).to_owned()
}

/// The only value that the query gives in the views' database, as a number.
async fn query_number(pipeline: &Pipeline, query: &str) -> i64 {
    query_text(pipeline, query).await.parse().expect("a number")
}

/// A command of view-builder, not yet started. `rebuild` gets the SQL from `views`.
fn command(pipeline: &Pipeline, views: &Path, arguments: &[&str]) -> Program {
    let name = arguments.join("-");
    let command = pipeline.view_builder.command_of(&name, arguments);
    if arguments[0] == "rebuild" {
        command.with_env("VIEWS", &views.to_string_lossy())
    } else {
        command
    }
}

/// Runs a command of view-builder. Asserts that it ends with this exit code. Returns its log.
async fn assert_command(pipeline: &Pipeline, views: &Path, arguments: &[&str], exit_code: i32) -> String {
    let command = command(pipeline, views, arguments);
    command.start().expect("the command starts");
    let status = command.exited(DEADLINE).await.expect("the command ends");
    let log = command.log_text();
    assert_eq!(status.code(), Some(exit_code), "{arguments:?}: {log}");
    log
}

/// Starts clients that change users and posts all the time. Returns once more than `answered` changes were answered.
async fn start_workload(pipeline: &Pipeline, answered: usize) -> Workload {
    let workload = Workload::start(&Rest::of(pipeline), CHANGES_PER_SECOND);
    eventually_ok(DEADLINE, "some changes", || async {
        anyhow::ensure!(workload.answered() > answered);
        Ok(())
    })
    .await
    .expect("changes");
    workload
}

/// A copy of the shipped views in a folder of the pipeline's logs.
struct ViewsFolder(PathBuf);

impl ViewsFolder {
    fn copy(pipeline: &Pipeline, name: &str) -> Self {
        let directory = pipeline.logs().join(name);
        for view in std::fs::read_dir(checkout::root().join("sql/views")).expect("the shipped views") {
            let view = view.expect("a folder");
            let to = directory.join(view.file_name());
            std::fs::create_dir_all(&to).expect("a folder");
            for file in std::fs::read_dir(view.path()).expect("its files") {
                let file = file.expect("a file");
                std::fs::copy(file.path(), to.join(file.file_name())).expect("a copy");
            }
        }
        Self(directory)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, view: &str, file: &str, text: &str) {
        std::fs::create_dir_all(self.0.join(view)).expect("a folder");
        std::fs::write(self.0.join(view).join(file), text).expect("a file");
    }

    fn read(&self, view: &str, file: &str) -> String {
        std::fs::read_to_string(self.0.join(view).join(file)).expect("a file")
    }
}
