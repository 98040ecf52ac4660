"""What the sandbox received and accepted, so that a test can prove "each message exactly once"."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from .clock import iso


def content_key(receiver: str, content: str) -> str:
    """The key of a message that carries no id of the sender's."""
    return "sha256:" + sha256(f"{receiver}\n{content}".encode()).hexdigest()[:32]


@dataclass(slots=True)
class Counters:
    requests: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    refused: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_channel: Counter[str] = field(default_factory=Counter)
    by_key: Counter[str] = field(default_factory=Counter)
    by_receiver: Counter[str] = field(default_factory=Counter)
    by_pair: Counter[tuple[str, str]] = field(default_factory=Counter)
    messages: list[dict[str, Any]] = field(default_factory=list)
    grant_calls: Counter[str] = field(default_factory=Counter)  # coupon calls by out_request_no, repeats included
    grants: Counter[str] = field(default_factory=Counter)  # coupons really given, by out_request_no
    mail_ids: Counter[str] = field(default_factory=Counter)
    mail_receivers: Counter[str] = field(default_factory=Counter)
    violations: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)  # what the robots of the team chats were told

    def accept(self, channel: str, receiver: str, key: str | None, content: str, at: float, **more: Any) -> str:
        """Count one accepted message to one receiver; returns the key it was counted under."""
        key = key or content_key(receiver, content)
        self.by_channel[channel] += 1
        self.by_key[key] += 1
        self.by_receiver[receiver] += 1
        self.by_pair[receiver, key] += 1
        self.messages.append(
            {"channel": channel, "receiver": receiver, "key": key, "accepted_at": int(at), "content": content, **more}
        )
        return key

    def violation(self, rule: str, receiver: str, detail: str, at: float) -> None:
        """Something the platform accepts and punishes later."""
        self.violations.append({"rule": rule, "receiver": receiver, "detail": detail, "at": iso(at)})

    def listing(self) -> list[dict[str, Any]]:
        return [{**message, "accepted_at": iso(message["accepted_at"])} for message in self.messages]

    def as_dict(self) -> dict[str, Any]:
        pairs: dict[str, dict[str, int]] = defaultdict(dict)
        for (receiver, key), count in self.by_pair.items():
            pairs[receiver][key] = count
        return {
            "requests": self.requests,
            "refused": self.refused,
            "faults_fired": self.faults,
            "messages": {
                "total": sum(self.by_channel.values()),
                "by_channel": self.by_channel,
                "by_key": self.by_key,
                "by_receiver": self.by_receiver,
                "by_receiver_and_key": pairs,
                "max_per_receiver_and_key": max(self.by_pair.values(), default=0),
            },
            "coupons": {
                "granted": sum(self.grants.values()),
                "by_out_request_no": self.grants,
                "calls_by_out_request_no": self.grant_calls,
            },
            "emails": {"by_message_id": self.mail_ids, "by_recipient": self.mail_receivers},
            "violations": self.violations,
            "alerts": self.alerts,
        }
