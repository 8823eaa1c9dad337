"""Conversations that several tests remember."""

from __future__ import annotations

from datetime import UTC, datetime

from latent_memory import Conversation, Turn

TRIP = Conversation(
    "trip",
    [
        Turn("user", "We fly to Osaka on the third of May.", datetime(2025, 3, 1, 9, tzinfo=UTC), "Ana"),
        Turn("assistant", "Shall I look for a hotel near the station?"),
        Turn("user", "Yes, the cheap one with the blue roof."),
    ],
    title="Japan",
    timestamp=datetime(2025, 3, 1, 9, tzinfo=UTC),
)
BREAD = Conversation(
    "bread",
    [Turn("user", "My sourdough needs 350 grams of water."), Turn("assistant", "That is seventy percent.")],
    timestamp=datetime(2024, 3, 1, 9, tzinfo=UTC),
)
