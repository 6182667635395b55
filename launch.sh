#!/usr/bin/env bash
# The one door: sets up .venv on first use (and again when pyproject.toml or constraints.txt change), then runs.
#
#   ./launch.sh demo            the whole main job on phantoms: shards, two trainings, analyses, a report
#   ./launch.sh test [ARGS…]    lint, types, tests (ARGS go to pytest; without any: the quick suite)
#   ./launch.sh train ARGS…     deepspeed train/run.py ARGS… here, on the nodes of HOSTFILE, or in a Slurm allocation
#   ./launch.sh sbatch [SLURM'S ARGS…] -- ARGS…   the same as a Slurm job that is requeued and goes on (sbatch --help)
#   ./launch.sh doctor          what this machine has, a line each, and what to do where something is amiss
#   ./launch.sh setup           the set-up alone
#   ./launch.sh completion      what Tab needs: source <(./launch.sh completion)
#
# Environment: PYTHON (interpreter for .venv), MEDSHARD_CUDA=13|12 (DALI's wheel), RANKS (ranks on this machine),
# HOSTFILE (nodes, as DeepSpeed reads it), NODE_RANK and MASTER_ADDR (start this node of HOSTFILE alone, without ssh),
# MASTER_PORT.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
cuda=${MEDSHARD_CUDA:-13}

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

usage() { sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed, found $(${PYTHON:-python3} --version 2>&1 | head -n 1): install one, or name it: PYTHON=/path/to/python3 ./launch.sh"
}

# Writes .venv; a stamp written last says for which pyproject.toml, constraints, interpreter and CUDA it stands.
setup() {
    local python stamp free_kib log
    [[ $cuda == 13 || $cuda == 12 ]] || die "MEDSHARD_CUDA=$cuda: known are 13 (default) and 12 (older drivers)"
    stamp=$(cat "$root/pyproject.toml" "$root/constraints.txt"; echo "cuda$cuda $root")
    if [[ -f $venv/stamp && $(<"$venv/stamp") == "$stamp" ]]; then return; fi
    exec 9>"$root/.setup.lock"
    flock 9 # a second ./launch.sh waits here instead of writing the same files
    if [[ -f $venv/stamp && $(<"$venv/stamp") == "$stamp" ]]; then
        exec 9>&-
        return
    fi
    python=$(find_python)
    free_kib=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
    if [[ ! -f $venv/stamp ]] && ((free_kib < 10 * 1024 * 1024)); then
        die "disk: $((free_kib / 1024)) MiB free at $root, the environment takes about 7 GB and pip as much again while it works (10 GiB wanted): free some, or clone elsewhere"
    fi
    log=$root/.setup.log
    trap interrupted INT # pip and compileall end as if they had failed, or as if all were well
    say "setting up $venv with $("$python" --version) (about 7 GB; log: $log)"
    "$python" -m venv "$venv" >"$log" 2>&1 || die "no virtual environment could be made: $(tail -n 1 "$log")"
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-input --no-compile \
        -c "$root/constraints.txt" -e "$root[cuda$cuda,demo,dev]" >>"$log" 2>&1; then
        if grep -qi 'No space left' "$log"; then
            die "the disk filled up during the installation: free some and run the same command again"
        elif grep -qiE 'NewConnectionError|Name or service not known|name resolution|timed out|Connection refused|ProxyError' "$log"; then
            die "the package registry is out of reach: check the network or the proxy settings and run the same command again ($log)"
        fi
        die "the installation failed: $(grep -i error "$log" | tail -n 1) ($log)"
    fi
    # pip compiles on one core; on all of them it is half the wait. Without it, where PYTHONDONTWRITEBYTECODE is set,
    # every start of a script would compile torch anew (19 s instead of 7). Files for other Pythons fail, and may.
    "$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages >>"$log" 2>&1 || true
    printf '%s\n' "$stamp" >"$venv/stamp"
    exec 9>&- # else the training that follows would keep the lock, and others would wait for its end
    trap - INT
    say "set-up done; before python … in a shell: source $(printf '%q' "$venv/bin/activate")"
}

# What Ctrl-C does where a command that was interrupted does not tell, or is not alone.
interrupted() { say "stopped; run the same command to go on" >&2; exit 130; }

has_gpu() { [[ -e /dev/nvidia0 ]] && command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# Without a GPU the ranks are processes over gloo, which share the cores. Threads that wait sleep: spinning, they would
# take from the loader's (3 times slower steps where anything else runs).
cpu_settings() {
    has_gpu && return
    local cores
    cores=$(($(env -u OMP_NUM_THREADS nproc) / ${RANKS:-1}))
    export DS_ACCELERATOR=cpu OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > 0 ? cores : 1))}
}

# Runs a command in a session of its own and asks all of it to stop with USR1 when told to: the trainer's ranks answer
# with a checkpoint, DeepSpeed's launchers ignore it (on TERM they would kill ranks that take longer than 30 s to write).
# It is asked again and again: a rank that is still importing does not listen yet. A second Ctrl-C, or a minute without
# an end, kills what is left. Sets `told` where it was told.
in_own_session() {
    local signal=USR1 group status=0 interrupts=0 seconds=0 reminder=
    (trap '' USR1 && exec setsid "$@") &
    group=$!
    told=0
    trap 'told=1; stop_run USR1; keep_asking' TERM USR1
    trap 'told=1; ((++interrupts > 1)) && signal=KILL || say "stopping (a training with a checkpoint); Ctrl-C again ends at once" >&2
        stop_run "$signal"; keep_asking' INT
    while kill -0 "$group" 2>/dev/null; do
        status=0
        wait "$group" 2>/dev/null || status=$? # bash would tell of the KILL
    done
    while kill -0 -- "-$group" 2>/dev/null && ((interrupts < 2 && seconds++ < 60)); do sleep 1; done
    trap - INT TERM USR1
    [[ -z $reminder ]] || kill "$reminder" 2>/dev/null || true
    kill -KILL -- "-$group" 2>/dev/null || true
    ((interrupts < 2)) || return 130
    return "$status"
}

# Repeats the wish to stop, which costs a rank that has heard it nothing, for as long as the run lives.
keep_asking() {
    [[ -z $reminder ]] || return 0
    while sleep 3 && kill -0 -- "-$group" 2>/dev/null; do stop_run USR1; done </dev/null >/dev/null 2>&1 &
    reminder=$!
}

# A signal to all of the run, the ranks on other machines, too: of all trainers there those with this run's mark. USR1
# goes only to those that catch it (bit 9 of SigCgt): it would end one that is still importing, and the others wait.
stop_run() {
    ((!over_ssh)) || on_nodes "for rank in \$(pgrep -f -- ' -u /.*/train/run\.py'); do
        grep -qzxF 'MEDSHARD_EXIT_FILE=$MEDSHARD_EXIT_FILE' /proc/\$rank/environ || continue
        [ $1 = KILL ] || grep -q '^SigCgt:.*[2367abef]..\$' /proc/\$rank/status || continue
        kill -$1 \$rank
    done"
    kill -"$1" -- "-$group" 2>/dev/null || true
}

# Starts a command on every node of HOSTFILE, side by side; nobody hears what it says.
on_nodes() {
    local node
    for node in $(nodes_of "$HOSTFILE"); do
        ssh -o ConnectTimeout=10 "$node" "$1" </dev/null >/dev/null 2>&1 &
    done
}

# A port that all nodes know without asking: it follows from what is run and where.
agreed_port() { echo $((20000 + $({ nodes_of "$HOSTFILE"; printf '%s\0' "$@"; } | cksum | cut -d ' ' -f 1) % 12000)); }

free_port() { "$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# The nodes of a HOSTFILE, a line each: "name slots=N"; comments and empty lines left out.
nodes_of() { sed 's/#.*//' "$1" | awk 'NF { print $1 }'; }

# Fills `where` for DeepSpeed's launcher: this machine, one of several that are started by hand, or all over ssh.
choose_nodes() {
    local count wrong
    if [[ -n ${HOSTFILE:-} ]]; then
        [[ -f $HOSTFILE ]] || die "HOSTFILE=$HOSTFILE: no such file; a line a node, as in: node1 slots=8"
        count=$(nodes_of "$HOSTFILE" | wc -l)
        ((count)) || die "HOSTFILE=$HOSTFILE names no node; a line a node, as in: node1 slots=8"
        wrong=$(nodes_of "$HOSTFILE" | LC_ALL=C grep -vE '^[A-Za-z0-9][A-Za-z0-9._:@-]*$' | head -n 1) || true # ssh takes -… as an option
        [[ -z $wrong ]] || die "HOSTFILE=$HOSTFILE: '$wrong' is no name of a machine; a line a node, as in: node1 slots=8"
        where=(--hostfile "$HOSTFILE")
    fi
    if [[ -n ${NODE_RANK:-} ]]; then
        [[ -n ${HOSTFILE:-} ]] || die "NODE_RANK=$NODE_RANK: give HOSTFILE=FILE, too, the same on every node; a line a node, as in: node1 slots=8"
        [[ $NODE_RANK =~ ^[0-9]+$ ]] && ((NODE_RANK < count)) || die "NODE_RANK=$NODE_RANK: $HOSTFILE has $count nodes; give 0 to $((count - 1)), each on one node"
        where+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "${MASTER_ADDR:-$(nodes_of "$HOSTFILE" | head -n 1)}")
    elif [[ -n ${HOSTFILE:-} ]] && ((count > 1)); then
        command -v pdsh >/dev/null || die "HOSTFILE without NODE_RANK starts the nodes over ssh and needs pdsh: install it (apt-get install pdsh), or start each node by hand with NODE_RANK=0, 1, …"
        over_ssh=1
        [[ -z ${MASTER_ADDR:-} ]] || where+=(--master_addr "$MASTER_ADDR")
    fi
}

# DeepSpeed hands few variables on to other nodes (PYTHON…, NCCL… of GPUs); what the ranks need besides stands in a file
# that it reads. No credentials: the words can be seen in the nodes' process lists. The trainer's flags go the same way,
# whole: the shells between here and there would take JSON's quotes, and pdsh what follows a %.
remote_settings() {
    local MEDSHARD_WORDS
    MEDSHARD_WORDS=$( (($#)) && printf '%s\0' "$@" | base64 | tr -d '\n' || true) && export MEDSHARD_WORDS
    DS_ENV_FILE=$(mktemp) && export DS_ENV_FILE
    env | grep -E '^(DS_ACCELERATOR|OMP_|GLOO_|NCCL_|TORCH_|HF_HOME|HF_HUB_|MEDSHARD_|CUDA_)[A-Z0-9_]*=[^ ;]*$' >"$DS_ENV_FILE" || true
}

train() {
    local -a where=()
    local over_ssh=0 status=0 told=0 port=${MASTER_PORT:-}
    [[ -d ${TMPDIR:-/tmp} && -w ${TMPDIR:-/tmp} ]] || die "TMPDIR=${TMPDIR:-/tmp} is no folder that can be written to: name another, as in TMPDIR=/tmp, or make it"
    [[ ${RANKS:-1} =~ ^[1-9][0-9]{0,4}$ ]] || die "RANKS=$RANKS: give the ranks on this machine, 1 or more"
    cpu_settings
    export PATH=$venv/bin:$PATH # nodes and ranks find this environment's python, ninja and deepspeed
    if [[ -n ${HOSTFILE:-} || -n ${NODE_RANK:-} ]]; then
        choose_nodes
    elif [[ ${SLURM_NNODES:-1} -gt 1 && -z ${MEDSHARD_IN_SRUN:-} ]]; then
        export MEDSHARD_IN_SRUN=1
        in_own_session srun --ntasks-per-node=1 --kill-on-bad-exit=0 "$root/launch.sh" train "$@"
        return
    elif [[ ${SLURM_NNODES:-1} -gt 1 ]]; then
        local hosts
        port=${port:-$((20000 + SLURM_JOB_ID % 20000))} # the same on all nodes, another for each job
        hosts=$(mktemp) # DeepSpeed wants a real file; srun starts this line once a node
        scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=${SLURM_GPUS_ON_NODE:-${RANKS:-1}}/" >"$hosts"
        where=(-H "$hosts" --no_ssh --node_rank "$SLURM_NODEID" --master_addr "${MASTER_ADDR:-$(nodes_of "$hosts" | head -n 1)}")
    fi
    MEDSHARD_EXIT_FILE=$(mktemp) && export MEDSHARD_EXIT_FILE
    # Ranks of this machine alone meet at any free port, so that two runs live side by side; nodes want one they all know.
    [[ -n $port || -z ${HOSTFILE:-} ]] || port=$(agreed_port "$@")
    where+=(--master_port "${port:-$(free_port)}")
    ((!over_ssh)) || { remote_settings "$@" && set --; }
    if [[ -n ${RANKS:-} ]]; then
        where+=(--num_gpus "$RANKS")
    elif ! has_gpu && [[ -z ${HOSTFILE:-} && ${SLURM_NNODES:-1} -le 1 ]]; then
        where+=(--num_gpus 1)
    fi
    in_own_session deepspeed --quiet "${where[@]}" "$root/train/run.py" "$@" || status=$?
    # The run's own word counts: the launcher reports a clean stop as 143, and its own death by a signal as 0.
    if [[ ! -s $MEDSHARD_EXIT_FILE ]] && ((over_ssh)); then # the first rank's machine may be another
        ssh "$(nodes_of "$HOSTFILE" | head -n 1)" "cat $MEDSHARD_EXIT_FILE" >"$MEDSHARD_EXIT_FILE" 2>/dev/null || true
    fi
    if [[ -s $MEDSHARD_EXIT_FILE ]]; then
        status=$(<"$MEDSHARD_EXIT_FILE")
    elif ((told && status != 130)); then
        status=75 # stopped before its first step, or by force: what lies in the run directory is whole
    elif ((status != 1 && status != 2 && status != 130)); then # those had their say
        say "the launcher ended without a word from the run (code $status; 247 is a rank that was killed, often for memory: dmesg): --resume goes on from its last checkpoint" >&2
        status=1
    fi
    rm -f "$MEDSHARD_EXIT_FILE" "${DS_ENV_FILE:-}" "${hosts:-}"
    ((!over_ssh)) || { on_nodes "rm -f $MEDSHARD_EXIT_FILE" && wait; } # each node's first rank leaves one
    return "$status"
}

# bash code: Tab after ./launch.sh, and after python with one of the scripts.
completion() {
    printf 'MEDSHARD_ROOT=%q\n' "$root"
    cat <<'EOF'
_medshard_ask() { # the line from the script's name on, then what python is to run
    local IFS=$'\013' line=$1
    shift
    COMPREPLY=($(COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 _ARGCOMPLETE=1 _ARGCOMPLETE_IFS=$IFS \
        _ARGCOMPLETE_SUPPRESS_SPACE=1 bash -c '"$0" "$@" 8>&1 9>/dev/null >/dev/null 2>&1' "$MEDSHARD_ROOT/.venv/bin/python" "$@"))
}
_medshard_launch() {
    local line=${COMP_LINE#* }
    case $COMP_CWORD:${COMP_WORDS[1]} in
        1:*) COMPREPLY=($(compgen -W "demo test train sbatch doctor setup completion" -- "${COMP_WORDS[1]}")) ;;
        *:train) _medshard_ask "$line" "$MEDSHARD_ROOT/train/run.py" ;;
        *:sbatch) _medshard_ask "$line" "$MEDSHARD_ROOT/train/sbatch.py" ;;
        *:doctor) _medshard_ask "$line" "$MEDSHARD_ROOT/train/doctor.py" ;;
    esac
}
_medshard_python() {
    case $COMP_CWORD:${COMP_WORDS[1]}:${COMP_WORDS[2]} in
        [12]:-m:* | 1:*) ;;
        3:-m:shards) _medshard_ask "${COMP_LINE#* -m }" -m shards ;;
        *:-m:shards) _medshard_ask "${COMP_LINE#* shards }" -m shards "${COMP_WORDS[3]}" ;;
        *) grep -qsE "^from (shards.script|analysis.launching) import" -- "${COMP_WORDS[1]}" && _medshard_ask "${COMP_LINE#* }" "${COMP_WORDS[1]}" ;;
    esac
}
complete -o bashdefault -o default -F _medshard_launch ./launch.sh launch.sh
complete -o bashdefault -o default -F _medshard_python python python3
EOF
}

run_tests() {
    export PATH=$venv/bin:$PATH
    cd "$root"
    if (($#)); then
        exec "$venv/bin/python" -m pytest "$@"
    fi
    say "lint and types"
    "$venv/bin/ruff" check --quiet . && "$venv/bin/ruff" format --quiet --check . || die "ruff: see ruff check . and ruff format --diff ."
    "$venv/bin/mypy" || die "mypy: types do not fit"
    exec "$venv/bin/python" -m pytest -m "not slow"
}

# One line a step of the demo: what is done, or that it was done before.
step() {
    local title=$1 product=$2
    shift 2
    if [[ -e $product ]]; then
        say "✓ $title: done before (${product#"$root"/})"
        return
    fi
    say "→ $title"
    "$@"
}

demo_training() {
    local name=$1 start=$2
    shift 2
    local status=0
    # A training that was interrupted goes on where it stopped.
    if [[ -e $root/runs/$name/config.json ]]; then
        train --resume "$root/runs/$name" || status=$?
    else
        train --shards "$shards" --model tf_efficientnet_lite0 --start "$start" --out "$root/runs" --name "$name" \
            --image-size 128 --epochs 5 --global-batch 16 --lr 5e-4 --seed 1 "$@" || status=$?
    fi
    ((status != 75 && status != 130)) || say "./launch.sh demo goes on there" >&2
    return "$status"
}

# Ends the demo's analyses, which run in the background and so never hear Ctrl-C.
stop_analyses() {
    local pid
    for pid in "${pids[@]}"; do pkill -TERM -P "$pid" || true; kill "$pid" || true; done 2>/dev/null
    wait || true
    rm -f "$root"/runs/.demo-*.out
    interrupted
}

demo() {
    local raw=$root/data/raw/phantom-DDSM shards=$root/data/shards/phantom-DDSM weights=$root/data/weights/lite0.safetensors
    local python=$venv/bin/python name analysis
    local -a pids=()
    say "The demo's images are phantoms: drawn textures, not patients. Its numbers say nothing about medicine."
    step "draw 300 phantoms" "$raw/phantom.salt" "$python" "$root/prep/phantoms.py" --dataset DDSM --out "$raw" --num-images 300
    step "make shards" "$shards/manifest.json" "$python" "$root/prep/make_shards.py" --dataset DDSM --raw "$raw" --out "$shards" --salt "$raw/phantom.salt"
    step "ImageNet weights" "$weights" "$python" "$root/train/lite0.py" "$weights"
    step "train from ImageNet weights (WT)" "$root/runs/demo-wt/results.json" demo_training demo-wt wt --weights "$weights"
    step "train from a random start (RI)" "$root/runs/demo-ri/results.json" demo_training demo-ri ri
    for name in demo-wt demo-ri; do
        # Side by side, a core each; the tables come one after the other, the progress bars as they run.
        (
            for analysis in knn cka l2 dimension saliency; do
                OMP_NUM_THREADS=1 step "$analysis of $name" "$root/runs/$name/analysis/$analysis.json" \
                    "$python" "$root/analysis/$analysis.py" "$root/runs/$name"
            done
        ) >"$root/runs/.$name.out" &
        pids+=($!)
    done
    trap stop_analyses INT TERM
    say "→ k-NN, CKA, L2, intrinsic dimension and saliency of both runs"
    for name in demo-wt demo-ri; do
        wait "${pids[0]}" || { cat "$root/runs/.$name.out"; die "the analyses of $name failed"; }
        cat "$root/runs/.$name.out"
        rm "$root/runs/.$name.out"
        pids=("${pids[@]:1}")
    done
    trap - INT TERM
    "$python" "$root/analysis/report.py" "$root/runs/demo-wt" "$root/runs/demo-ri" --out "$root/runs/demo-report.html"
}

command=${1:-help}
(($#)) && shift
case $command in
    demo) setup && demo ;;
    test) setup && run_tests "$@" ;;
    train) setup && train "$@" ;;
    sbatch) setup && exec "$venv/bin/python" "$root/train/sbatch.py" "$@" ;;
    doctor) setup && PATH=$venv/bin:$PATH exec "$venv/bin/python" "$root/train/doctor.py" "$@" ;;
    setup) setup ;;
    completion) completion ;;
    -h | --help | help) usage ;;
    *) die "unknown command '$command': known are demo, test, train, sbatch, doctor, setup, completion (./launch.sh help)" ;;
esac
