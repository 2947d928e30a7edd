-- Where the views stand in their topics, and which views there are. Runs at each start.

create table if not exists view_positions (
    topic        text    not null,
    partition    integer not null,
    -- The next offset to apply; null: nothing has been applied, begin with the first.
    next_offset  bigint check (next_offset >= 0),
    -- Counts the claims of this partition. A transaction under an older epoch changes nothing.
    epoch        bigint  not null,
    -- Who claimed it last, for people.
    owner        text    not null,
    claimed_at   timestamptz not null,
    -- The offset that the consumer group last committed to Kafka. An earlier one found there is an operator's reset.
    group_offset bigint,
    -- Counts the changes that an operator makes to the partition's dead letters: a rebuild that is under way looks at them again.
    letters_version bigint not null default 0,
    primary key (topic, partition)
) with (fillfactor = 50);

-- Until dead letters were kept, a partition waited before an event that could not be applied. Looked at first, since altering
-- waits for every builder's transaction even where there is nothing to alter.
do $$
begin
    if exists (
        select from pg_attribute
        where attrelid = 'view_positions'::regclass and attname = 'stopped' and not attisdropped
    ) then
        alter table view_positions drop column stopped, add column letters_version bigint not null default 0;
    end if;
end
$$;

-- The highest position that a partition has had, where its position was set back, by whomever: events below it are a replay, whose
-- age says nothing about how fast the view is.
create or replace function keep_highest_position() returns trigger
    language plpgsql
as $$
begin
    new.highest_offset = greatest(old.highest_offset, old.next_offset);
    return new;
end
$$;

do $$
begin
    if not exists (
        select from pg_attribute
        where attrelid = 'view_positions'::regclass and attname = 'highest_offset' and not attisdropped
    ) then
        alter table view_positions add column highest_offset bigint;
        create trigger keep_highest_position before update on view_positions
            for each row when (old.next_offset > coalesce(new.next_offset, 0))
            execute function keep_highest_position();
    end if;
end
$$;

-- What an operator has to know of a partition although it is read, until `view-builder accept` says that it is known.
create table if not exists view_notices (
    topic     text        not null,
    partition integer     not null,
    -- truncated: events were removed before the view began. made-anew: the topic was deleted and made anew. end-lost: the topic had ended
    -- below the position for a while.
    kind      text        not null,
    notice    text        not null,
    since     timestamptz not null default clock_timestamp(),
    primary key (topic, partition, kind)
);

-- Every (view, topic) whose events are applied under view_positions: all builders of these positions keep the same views.
create table if not exists view_sources (
    view  text not null,
    topic text not null,
    primary key (view, topic)
);

-- The views' SQL as all builders apply it; see catalog.rs.
create table if not exists view_definitions (
    view      text   primary key,
    table_sql text   not null,
    apply_sql text   not null,
    -- md5 of the texts that later ones have replaced: a builder that still brings one of them along is an older one.
    replaced  text[] not null default '{}'
);

-- Rebuilds under way: each fills a schema of its own beside the live view. See view-builder rebuild --help.
create table if not exists view_rebuilds (
    view       text        primary key,
    -- The schema that is filled.
    generation text        not null,
    table_sql  text        not null,
    apply_sql  text        not null,
    started_at timestamptz not null default clock_timestamp()
);

-- How far each of them is.
create table if not exists view_rebuild_positions (
    view            text    not null references view_rebuilds on delete cascade,
    topic           text    not null,
    partition       integer not null,
    next_offset     bigint  not null,
    -- The state of the partition's dead letters under which it was filled.
    letters_version bigint  not null,
    -- The first event that was left out as a dead letter: read again from here when the dead letters have changed.
    left_out_from   bigint,
    primary key (view, topic, partition)
);

-- Views that are kept no further for now, since Postgres refuses what they do or an operator wants it. See docs/paused-views.md.
create table if not exists view_pauses (
    view      text        primary key,
    -- In one line, without values.
    reason    text        not null,
    -- With which SQLSTATE Postgres refused; null: an operator has paused it.
    sqlstate  text,
    paused_at timestamptz not null default clock_timestamp(),
    -- Who did it, for people.
    paused_by text        not null,
    -- md5 of the view's texts as they were then.
    sql_md5   text        not null
);

-- What a paused view has: every event before these offsets, and none from there on. No row: nothing of the partition.
create table if not exists view_pause_positions (
    view        text    not null references view_pauses on delete cascade,
    topic       text    not null,
    partition   integer not null,
    -- Null: nothing.
    next_offset bigint,
    -- Events of a former topic, which nobody has any more, are missing in it.
    lacks       boolean not null default false,
    primary key (view, topic, partition)
);

-- Builders whose batch fails again and again, as `status` tells them. Written where Postgres takes it; told_at is renewed while it lasts.
create table if not exists view_stuck_batches (
    owner   text        primary key,
    reason  text        not null,
    since   timestamptz not null default clock_timestamp(),
    told_at timestamptz not null default clock_timestamp()
);

-- Records that cannot be applied, and later ones of their keys, which wait behind them. See view-builder dead-letters --help.
create table if not exists view_dead_letters (
    id            bigint      generated always as identity primary key,
    topic         text        not null,
    partition     integer     not null,
    record_offset bigint      not null,
    key           bytea,
    value         bytea       not null,
    -- [["name", "value in hex"], ["name", null], ...], in the record's order.
    headers       jsonb       not null,
    record_time   timestamptz,
    -- Why it cannot be applied; null: nothing is wrong with it, it waits behind an earlier one of its key.
    reason        text,
    arrived_at    timestamptz not null default clock_timestamp(),
    -- How often an operator has tried it again, in vain.
    retries       integer     not null default 0,
    -- When an operator gave it up. It stays here, so that a replay does not bring it back, and holds nobody up.
    discarded_at  timestamptz,
    unique (topic, partition, record_offset)
);

-- Looked at first: `if not exists` waits for whoever writes a letter, also where the index is there.
do $$
begin
    if to_regclass('view_dead_letters_key') is null then
        create index view_dead_letters_key on view_dead_letters (topic, partition, key, record_offset)
            where discarded_at is null;
    end if;
end
$$;

-- Columns that tables of earlier versions lack, each looked for first: altering waits for every builder's transaction even where there is
-- nothing to alter.
do $$
declare
    missing record;
begin
    for missing in
        select wanted.*
        from (values
            -- Kafka's id of the topic that next_offset is of; null where Kafka has not told one yet.
            ('view_positions', 'topic_id', 'text'),
            -- Those of the topics of the same name before, which were deleted.
            ('view_positions', 'former_topic_ids', 'text[] not null default ''{}'''),
            -- Counts how often offsets have lost their meaning: the topic was made anew, or an operator has accepted a loss.
            ('view_positions', 'breaks', 'bigint not null default 0'),
            -- Why the holder does not read the partition; null: it does.
            ('view_positions', 'paused', 'text'),
            -- The reason by its name, as the metrics have it; of no meaning where paused is null.
            ('view_positions', 'paused_reason', 'text'),
            -- The lowest end that Kafka told while the partition was paused, since it lay below next_offset; null: that never was, or
            -- events from there on are read again. It outlasts the pause where an older builder ends that.
            ('view_positions', 'paused_end', 'bigint'),
            -- How far the log was read, at least, and the leader's epoch of the last record before: whoever begins after a change of the
            -- leader asks whether its log has that record. Null: nothing was read of the topic as it is, or the cluster has no epochs.
            ('view_positions', 'read_to', 'bigint'),
            ('view_positions', 'read_epoch', 'integer'),
            -- When the source committed the newest event that was applied, by the source's clock, and when that event was applied. A replay
            -- changes neither. Null: nothing was applied of the topic as it is.
            ('view_positions', 'newest_event_at', 'timestamptz'),
            ('view_positions', 'newest_applied_at', 'timestamptz'),
            -- The same of a paused view, as it was at the pause.
            ('view_pause_positions', 'newest_event_at', 'timestamptz'),
            ('view_pause_positions', 'newest_applied_at', 'timestamptz'),
            -- What an operator has accepted for the rebuild: that events which retention has removed may be missing, and rows of keys with
            -- dead letters.
            ('view_rebuilds', 'accepts_truncated', 'boolean not null default false'),
            ('view_rebuilds', 'accepts_compacted', 'boolean not null default false'),
            -- As of which `breaks` of its position a partition was filled: another one ends the rebuild.
            ('view_rebuild_positions', 'breaks', 'bigint not null default 0'),
            -- Whether the views had applied its event when it came: in a replay, a view that is new or whose SQL has changed can refuse what
            -- the others have.
            ('view_dead_letters', 'applied_before', 'boolean not null default false'),
            -- The id of the topic of which the record was, where it is not in the topic any more; null: it is.
            ('view_dead_letters', 'former_topic_id', 'text'),
            -- Why an operator gave it up, in the operator's words; null: nobody said.
            ('view_dead_letters', 'discard_reason', 'text')
        ) as wanted(relation, name, definition)
        where not exists (
            select from pg_attribute
            where attrelid = wanted.relation::regclass and attname = wanted.name and not attisdropped)
    loop
        execute format('alter table %I add column %I %s', missing.relation, missing.name, missing.definition);
    end loop;
end
$$;

-- Those of them whose records are not in the topic any more: their offsets are other records' now. A table of its own, so that no version of
-- the builder takes them for letters of the topic. A row moves here as it is: the columns are the same, in the same order.
create table if not exists view_former_dead_letters (like view_dead_letters, primary key (id));

-- In earlier versions it inherited from view_dead_letters, whose readers saw these rows as well. Looked at first, as above.
do $$
begin
    if exists (select from pg_inherits where inhrelid = 'view_former_dead_letters'::regclass) then
        alter table view_former_dead_letters no inherit view_dead_letters;
    end if;
end
$$;

-- Its columns are those of view_dead_letters, also the ones that an earlier version of this table lacks. Looked at first, as above.
do $$
begin
    if not exists (
        select from pg_attribute
        where attrelid = 'view_former_dead_letters'::regclass and attname = 'discard_reason' and not attisdropped
    ) then
        alter table view_former_dead_letters add column discard_reason text;
    end if;
end
$$;

-- Puts the letters from an offset on aside, since other records have their offsets now. The caller holds the position's lock.
create or replace function put_dead_letters_aside(of_topic text, of_partition integer, from_offset bigint, of_topic_id text)
    returns void
    language sql
as $$
    with gone as (
        delete from only view_dead_letters as letter
        where letter.topic = of_topic and letter.partition = of_partition and letter.record_offset >= from_offset
        returning letter.*
    )
    insert into view_former_dead_letters select * from gone;
    update view_former_dead_letters set former_topic_id = coalesce(of_topic_id, 'unknown')
    where topic = of_topic and partition = of_partition and former_topic_id is null
$$;

-- Lets claimed partitions begin at these offsets. One that somebody else has claimed meanwhile stays as it is. `anew`: the topic is
-- another than before, so that its letters' offsets mean nothing and the group's offset is none of it. `ended`: the topic had ended there,
-- below the position, so that the records from there on may be others. Older builders have a function with one argument less.
create or replace function begin_view_positions(
    topics text[], partitions integer[], epochs bigint[], next_offsets bigint[], topic_ids text[], anew boolean[],
    ended bigint[], notice_kinds text[], notices text[]
) returns void
    language plpgsql
as $$
declare
    one record;
begin
    for one in
        select wanted.*, held.topic_id as old_topic_id, greatest(held.next_offset, held.highest_offset) as old_reached
        from view_positions as held
        join unnest(topics, partitions, epochs, next_offsets, topic_ids, anew, ended, notice_kinds, notices)
            as wanted(topic, partition, epoch, next_offset, topic_id, is_anew, ended_at, notice_kind, notice)
            on held.topic = wanted.topic and held.partition = wanted.partition
        where held.epoch = wanted.epoch
        order by held.topic, held.partition
        for update of held
    loop
        update view_positions as held set
            next_offset = one.next_offset,
            group_offset = case
                when one.is_anew then null
                when one.ended_at is not null or held.next_offset is distinct from one.next_offset
                    then least(held.group_offset, one.next_offset)
                else held.group_offset
            end,
            topic_id = coalesce(one.topic_id, held.topic_id),
            paused = null,
            paused_end = case when one.is_anew or one.ended_at is not null then null else held.paused_end end,
            read_to = case when one.is_anew or one.ended_at is not null then null else held.read_to end,
            read_epoch = case when one.is_anew or one.ended_at is not null then null else held.read_epoch end
        where held.topic = one.topic and held.partition = one.partition;
        if one.is_anew then
            -- A statement of its own: the one before has let the trigger keep the former topic's highest offset.
            update view_positions as held set
                highest_offset = null,
                newest_event_at = null,
                newest_applied_at = null,
                former_topic_ids = array_append(held.former_topic_ids, one.old_topic_id),
                letters_version = held.letters_version + 1,
                breaks = held.breaks + 1
            where held.topic = one.topic and held.partition = one.partition;
            -- A paused view has nothing of the new topic.
            update view_pause_positions as paused set
                next_offset = one.next_offset,
                lacks = paused.lacks or paused.next_offset is distinct from one.old_reached
            where paused.topic = one.topic and paused.partition = one.partition;
            -- Of a partition that came after the pause it has nothing of the former topic either.
            insert into view_pause_positions (view, topic, partition, next_offset, lacks)
            select pause.view, one.topic, one.partition, one.next_offset, true
            from view_pauses as pause join view_sources as source on source.view = pause.view
            where source.topic = one.topic and one.old_reached > 0
            on conflict do nothing;
            perform put_dead_letters_aside(one.topic, one.partition, 0, one.old_topic_id);
        elsif one.ended_at is not null then
            -- As above.
            update view_positions as held set
                highest_offset = one.ended_at,
                letters_version = held.letters_version + 1,
                breaks = held.breaks + 1
            where held.topic = one.topic and held.partition = one.partition;
            -- A paused view has none of the events that are there now.
            update view_pause_positions as paused set next_offset = one.ended_at
            where paused.topic = one.topic and paused.partition = one.partition and paused.next_offset > one.ended_at;
            perform put_dead_letters_aside(one.topic, one.partition, one.ended_at, one.old_topic_id);
        end if;
        if one.notice is not null then
            insert into view_notices (topic, partition, kind, notice)
            values (one.topic, one.partition, one.notice_kind, one.notice)
            on conflict (topic, partition, kind) do update set notice = excluded.notice, since = excluded.since;
        end if;
    end loop;
end
$$;

-- Puts records down; what is there already stays as it is, so that a replay changes nothing. Fails with SQLSTATE VB002 where a record
-- without a reason, which is parked, has no open letter of its key before it: the caller takes a key to wait that waits no longer, or does
-- not know that the record was discarded. The caller holds the positions' locks, as whoever takes letters away does.
create or replace function keep_view_letters(
    topics text[], partitions integer[], offsets bigint[], keys bytea[], record_values bytea[], headers text[],
    record_times_us bigint[], reasons text[]
) returns void
    language plpgsql
as $$
declare
    is_known boolean;
begin
    with letter as (
        select letter.*
        from unnest(topics, partitions, offsets, keys, reasons) as letter(topic, partition, record_offset, key, reason)
    ),
    given_up as materialized (
        select topic, partition, record_offset
        from letter join only view_dead_letters as known using (topic, partition, record_offset)
        where known.discarded_at is not null
    ),
    -- The first of each key that is dead in this very batch.
    dead as materialized (
        select topic, partition, key, min(record_offset) as first_offset
        from letter
        where reason is not null and key is not null and (topic, partition, record_offset) not in (table given_up)
        group by topic, partition, key
    )
    select not exists (
        select from letter left join dead using (topic, partition, key)
        where letter.reason is null
            and coalesce(dead.first_offset > letter.record_offset, true)
            and not exists (
                select from only view_dead_letters as open
                where open.topic = letter.topic and open.partition = letter.partition and open.key = letter.key
                    and open.record_offset <= letter.record_offset and open.discarded_at is null)
    ) and not exists (
        select from letter join given_up using (topic, partition, record_offset) where letter.reason is null
    ) into is_known;
    if not is_known then
        raise exception 'the dead letters of a partition of this batch have changed' using errcode = 'VB002';
    end if;
    insert into view_dead_letters
        (topic, partition, record_offset, key, value, headers, record_time, reason, applied_before)
    select letter.topic, letter.partition, letter.record_offset, letter.key, letter.value, letter.headers::jsonb,
        timestamptz '1970-01-01 00:00:00Z' + letter.record_time_us * interval '1 microsecond', letter.reason,
        coalesce(letter.record_offset < held.highest_offset, false)
            -- One that was put aside and is read again was a letter all the time.
            and not exists (
                select from view_former_dead_letters as aside
                where aside.topic = letter.topic and aside.partition = letter.partition and aside.record_offset = letter.record_offset
                    and aside.former_topic_id = coalesce(held.topic_id, 'unknown'))
    from unnest(topics, partitions, offsets, keys, record_values, headers, record_times_us, reasons)
        as letter(topic, partition, record_offset, key, value, headers, record_time_us, reason)
    left join view_positions as held using (topic, partition)
    order by letter.topic, letter.partition, letter.record_offset
    on conflict (topic, partition, record_offset) do nothing;
end
$$;

-- Moves positions, or fails with SQLSTATE VB001, and then the whole transaction must go: one of them is not where and under which epoch the
-- caller believes, since another builder has claimed it. How far the logs were read moves along, and never back: null where nothing is known of it.
-- So does the commit time of the newest event: null where the caller applies none. Older builders have functions with one and with three arguments
-- less, which leave that as it was.
create or replace function advance_view_positions(
    topics text[], partitions integer[], epochs bigint[], old_offsets bigint[], new_offsets bigint[],
    read_offsets bigint[], read_epochs integer[], newest_events_us bigint[]
) returns void
    language plpgsql
as $$
declare
    moved bigint;
    moved_later bigint := 0;
begin
    with mine as (
        select held.topic, held.partition, wanted.new_offset, wanted.read_offset, wanted.leader_epoch,
            timestamptz '1970-01-01 00:00:00Z' + wanted.newest_event_us * interval '1 microsecond' as newest_event_at
        from view_positions as held
        join unnest(topics, partitions, epochs, old_offsets, new_offsets, read_offsets, read_epochs, newest_events_us)
            as wanted(topic, partition, epoch, old_offset, new_offset, read_offset, leader_epoch, newest_event_us)
            on held.topic = wanted.topic and held.partition = wanted.partition
        where held.epoch = wanted.epoch and held.next_offset = wanted.old_offset
        order by held.topic, held.partition
        for update of held
    ), moved_rows as (
        update view_positions as held set
            next_offset = mine.new_offset,
            read_to = case when mine.read_offset >= coalesce(held.read_to, 0) then mine.read_offset else held.read_to end,
            read_epoch = case when mine.read_offset >= coalesce(held.read_to, 0) then mine.leader_epoch else held.read_epoch end,
            newest_event_at = greatest(held.newest_event_at, mine.newest_event_at),
            newest_applied_at = case
                when mine.newest_event_at > coalesce(held.newest_event_at, '-infinity') then clock_timestamp()
                else held.newest_applied_at
            end
        from mine
        where held.topic = mine.topic and held.partition = mine.partition
        returning held.topic
    )
    select count(*) into moved from moved_rows;
    if moved <> cardinality(topics) then
        -- Where the statement has waited for somebody who changed a row otherwise, such as a retry of dead letters, its snapshot does not have the
        -- row as it is now. The lock is ours by then, and this statement sees it.
        update view_positions as held set
            next_offset = wanted.new_offset,
            read_to = case when wanted.read_offset >= coalesce(held.read_to, 0) then wanted.read_offset else held.read_to end,
            read_epoch = case when wanted.read_offset >= coalesce(held.read_to, 0) then wanted.leader_epoch else held.read_epoch end,
            newest_event_at = greatest(held.newest_event_at, wanted.newest_event_at),
            newest_applied_at = case
                when wanted.newest_event_at > coalesce(held.newest_event_at, '-infinity') then clock_timestamp()
                else held.newest_applied_at
            end
        from (
            select moved.*,
                timestamptz '1970-01-01 00:00:00Z' + moved.newest_event_us * interval '1 microsecond' as newest_event_at
            from unnest(topics, partitions, epochs, old_offsets, new_offsets, read_offsets, read_epochs, newest_events_us)
                as moved(topic, partition, epoch, old_offset, new_offset, read_offset, leader_epoch, newest_event_us)
        ) as wanted
        where held.topic = wanted.topic and held.partition = wanted.partition
            and held.epoch = wanted.epoch and held.next_offset = wanted.old_offset and wanted.new_offset <> wanted.old_offset;
        get diagnostics moved_later = row_count;
    end if;
    if moved + moved_later <> cardinality(topics) then
        raise exception 'another builder has claimed a partition of this batch' using errcode = 'VB001';
    end if;
end
$$;

-- How old what a view shows is, for people and their queries: see docs/views.md. Looked at first: replacing it would wait for whoever reads it.
do $$
begin
    if to_regclass('view_lag') is null then
        create view view_lag as
        select view, topic, partition,
            -- The next offset of the topic that the view lacks.
            next_offset,
            -- When the source committed the newest event that the view has: it has all earlier ones of the partition, dead letters left out.
            newest_event_at,
            -- How long that event took from its commit into the view.
            case
                when newest_applied_at < newest_event_at then 0
                else extract(epoch from newest_applied_at - newest_event_at)::double precision
            end as lag_seconds,
            -- How long ago it was committed: the view is no further behind than that. It also grows while nothing is written at the source.
            case
                when clock_timestamp() < newest_event_at then 0
                else extract(epoch from clock_timestamp() - newest_event_at)::double precision
            end as age_seconds,
            -- Events are read again, as after `view-builder replay`, or for a view that is new and lacks some until then.
            is_replayed,
            is_paused
        from (
            select source.view, held.topic, held.partition,
                case when pause.view is null then held.next_offset else paused.next_offset end as next_offset,
                case when pause.view is null then held.newest_event_at else paused.newest_event_at end as newest_event_at,
                case when pause.view is null then held.newest_applied_at else paused.newest_applied_at end as newest_applied_at,
                coalesce(held.next_offset, 0) < coalesce(held.highest_offset, 0) as is_replayed,
                pause.view is not null as is_paused
            from view_sources as source
            join view_positions as held on held.topic = source.topic
            left join view_pauses as pause on pause.view = source.view
            left join view_pause_positions as paused
                on paused.view = source.view and paused.topic = held.topic and paused.partition = held.partition
        ) as reached;
    end if;
end
$$;
