#!/usr/bin/env python3
"""CPU of the bridge: a Messages request converted to Responses, beside the same amount of work relayed, and beside LiteLLM
doing the same conversion where its program is given. All in turns, against one scripted upstream; loopback only.

    tests/external/bridge_cost.py target/release/tiergate [LITELLM]

A line for each figure, in microseconds of the proxy's own processor time.
"""
import json, os, pathlib, signal, socket, subprocess, sys, tempfile, threading, time

ROUNDS, REQUESTS, EVENTS = 3, 100, 4000
QUESTION = 256 * 1024
USAGE = {'input_tokens': 10, 'output_tokens': 7, 'total_tokens': 17}


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def response(status, output):
    return {'id': 'resp_1', 'object': 'response', 'created_at': 1, 'model': 'gpt-5.5', 'status': status, 'output': output,
            'usage': USAGE if status == 'completed' else None, 'parallel_tool_calls': True, 'tool_choice': 'auto', 'tools': [],
            'error': None, 'incomplete_details': None, 'instructions': None, 'metadata': {}, 'temperature': 1.0, 'top_p': 1.0}


def events(count):
    text = {'type': 'output_text', 'text': 'word ' * count, 'annotations': []}
    item = {'type': 'message', 'id': 'msg_1', 'role': 'assistant', 'status': 'completed', 'content': [text]}
    place = {'item_id': 'msg_1', 'output_index': 0, 'content_index': 0}
    yield {'type': 'response.created', 'response': response('in_progress', [])}
    yield {'type': 'response.output_item.added', 'output_index': 0, 'item': {**item, 'status': 'in_progress', 'content': []}}
    yield {'type': 'response.content_part.added', **place, 'part': {**text, 'text': ''}}
    for _ in range(count):
        yield {'type': 'response.output_text.delta', **place, 'delta': 'word '}
    yield {'type': 'response.output_text.done', **place, 'text': text['text']}
    yield {'type': 'response.content_part.done', **place, 'part': text}
    yield {'type': 'response.output_item.done', 'output_index': 0, 'item': item}
    yield {'type': 'response.completed', 'response': response('completed', [item])}


def stream(count):
    parts = []
    for number, event in enumerate(events(count)):
        event['sequence_number'] = number
        parts.append(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    return parts


def whole():
    last = list(events(10))[-1]['response']
    return json.dumps(last).encode()


class Upstream:
    """Answers a body that says `"stream":true` by a stream, and any other by a document."""

    def __init__(self):
        self.socket = socket.create_server(('127.0.0.1', 0))
        self.port = self.socket.getsockname()[1]
        self.events, self.document = stream(EVENTS), whole()
        self.short = stream(10)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.socket.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        for head, body in messages(client):
            try:
                asked = json.loads(body)
            except ValueError:
                asked = {}
            if not asked.get('stream'):
                head = f'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(self.document)}\r\n\r\n'
                client.sendall(head.encode() + self.document)
                continue
            parts = self.events if 'many events' in json.dumps(asked.get('input'))[-4096:] else self.short
            client.sendall(b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n')
            client.sendall(b''.join(b'%x\r\n%s\r\n' % (len(part), part) for part in parts) + b'0\r\n\r\n')


def messages(client):
    """Requests on one connection: head and body."""
    data = b''
    while True:
        while b'\r\n\r\n' not in data:
            piece = client.recv(1 << 18)
            if not piece:
                return
            data += piece
        head, data = data.split(b'\r\n\r\n', 1)
        length = next((int(line.split(b':')[1]) for line in head.split(b'\r\n') if line.lower().startswith(b'content-length:')), 0)
        while len(data) < length:
            data += client.recv(1 << 18)
        body, data = data[:length], data[length:]
        yield head, body


def ask(port, path, body):
    """One request on a connection of its own; what came of its answer."""
    head = (f'POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer sk-fast\r\nx-api-key: sk-fast\r\n'
            f'anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n')
    with socket.create_connection(('127.0.0.1', port), timeout=60) as client:
        client.sendall(head.encode() + body)
        answer = b''
        while piece := client.recv(1 << 18):
            answer += piece
    assert answer.startswith(b'HTTP/1.1 200'), answer[:400]
    return answer


def used(process):
    """Processor time of all its threads so far, in seconds."""
    threads = pathlib.Path(f'/proc/{process.pid}/task').glob('*/schedstat')
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def cost(process, port, path, body, requests=REQUESTS):
    """Processor time of the process for one request, in microseconds."""
    for _ in range(3):
        ask(port, path, body)
    before = used(process)
    for _ in range(requests):
        ask(port, path, body)
    return (used(process) - before) / requests * 1e6


def wait_for(port, process, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(('127.0.0.1', port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit(f'nothing listens on port {port}')


def start_tiergate(program, folder, upstream):
    port = free_port()
    (folder / 'tiergate.yaml').write_text(f'''listen: 127.0.0.1:{port}
admin: 127.0.0.1:{free_port()}
policy: policy.yaml
upstreams: {{up: {{url: "http://127.0.0.1:{upstream}", messages: responses, credential_file: null,
                models: [{{match: "*", model: gpt-5.5}}]}}}}
access_log: {{path: access.log}}
server: {{threads: 1, drain: 1s}}
''')
    (folder / 'policy.yaml').write_text(
        'version: 1\ngroups: {fast: {platform: openai, force_fast_mode: true}}\nkeys: {sk-fast: fast}\n')
    process = subprocess.Popen([program, 'run', '--config', 'tiergate.yaml'], cwd=folder, stderr=subprocess.DEVNULL)
    wait_for(port, process, 20)
    return process, port


def start_litellm(program, folder, upstream):
    port = free_port()
    (folder / 'litellm.yaml').write_text(f'''model_list:
- model_name: claude-bench
  litellm_params: {{model: openai/gpt-5.5, api_base: "http://127.0.0.1:{upstream}/v1", api_key: sk-up}}
''')
    environment = {**os.environ, 'LITELLM_LOCAL_MODEL_COST_MAP': 'True', 'LITELLM_TELEMETRY': 'False',
                   'LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY': 'true', 'HOME': str(folder)}
    arguments = [program, '--config', 'litellm.yaml', '--host', '127.0.0.1', '--port', str(port), '--num_workers', '1']
    process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port, process, 120)
    return process, port


def bodies():
    words = 'x' * (QUESTION // 64 - 40)
    turns = [{'role': role, 'content': [{'type': 'text', 'text': words}]} for role in ('user', 'assistant') * 32]
    large = {'model': 'claude-bench', 'max_tokens': 100, 'stream': True, 'messages': [*turns, {'role': 'user', 'content': 'hi'}]}
    many = {'model': 'claude-bench', 'max_tokens': 100, 'stream': True, 'messages': [{'role': 'user', 'content': 'many events'}]}
    few = {**many, 'messages': [{'role': 'user', 'content': 'few'}]}
    input_items = [{'role': turn['role'], 'content': [{'type': 'input_text' if turn['role'] == 'user' else 'output_text',
                                                       'text': words}]} for turn in turns]
    relayed = {'model': 'gpt-5.5', 'stream': True, 'input': input_items}
    return {name: json.dumps(body, separators=(',', ':')).encode()
            for name, body in (('large', large), ('many', many), ('few', few), ('relayed', relayed))}


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    program = os.path.abspath(sys.argv[1])
    litellm = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else None
    upstream, body, figures, running = Upstream(), bodies(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        try:
            tiergate, port = start_tiergate(program, folder, upstream.port)
            running.append(tiergate)
            if litellm:
                rival, rival_port = start_litellm(litellm, folder, upstream.port)
                running.append(rival)
            for _ in range(ROUNDS):
                def note(name, *arguments):
                    figures.setdefault(name, []).append(cost(*arguments))
                note('relayed', tiergate, port, '/v1/responses', body['relayed'])
                for name in ('large', 'many', 'few'):
                    note(f'tiergate {name}', tiergate, port, '/v1/messages', body[name])
                    if litellm:
                        note(f'litellm {name}', rival, rival_port, '/v1/messages', body[name], 10)
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
    figure = {name: median(values) for name, values in figures.items()}
    print(f"a request of 256 KB relayed: {figure['relayed']:.0f} us")
    for who in ('tiergate', 'litellm') if litellm else ('tiergate',):
        event = (figure[f'{who} many'] - figure[f'{who} few']) / (EVENTS - 10)
        large = figure[f'{who} large']
        print(f"{who}: 256 KB converted: {large:.0f} us, {large / figure['relayed']:.1f} times the relayed; an event: {event:.1f} us")


if __name__ == '__main__':
    main()
