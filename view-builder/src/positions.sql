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
    -- Why the event at next_offset cannot be applied; null: nothing is wrong. The next claim tries it again.
    stopped      text,
    primary key (topic, partition)
) with (fillfactor = 50);

-- Every (view, topic) whose events are applied under view_positions: all builders of these positions keep the same views.
create table if not exists view_sources (
    view  text not null,
    topic text not null,
    primary key (view, topic)
);

-- Moves positions, or fails with SQLSTATE VB001 when one of them is not where and under which epoch the caller believes:
-- then another builder has claimed it, and the whole transaction must go.
create or replace function move_view_positions(
    topics text[], partitions integer[], epochs bigint[], old_offsets bigint[], new_offsets bigint[]
) returns void
    language plpgsql
as $$
declare
    moved bigint;
begin
    with mine as (
        select held.topic, held.partition, wanted.new_offset
        from view_positions as held
        join unnest(topics, partitions, epochs, old_offsets, new_offsets)
            as wanted(topic, partition, epoch, old_offset, new_offset)
            on held.topic = wanted.topic and held.partition = wanted.partition
        where held.epoch = wanted.epoch and held.next_offset = wanted.old_offset
        order by held.topic, held.partition
        for update of held
    )
    update view_positions as held set next_offset = mine.new_offset
    from mine
    where held.topic = mine.topic and held.partition = mine.partition;
    get diagnostics moved = row_count;
    if moved <> cardinality(topics) then
        raise exception 'another builder has claimed a partition of this batch' using errcode = 'VB001';
    end if;
end
$$;
