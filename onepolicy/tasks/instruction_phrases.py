"""The stock of phrases that `instruction_prompts.py` makes its prompts and answers of.

No commas, digits or words in capitals, and none of the keywords, in the English ones: constraints add them.
"""
# ruff: noqa: RUF001 - one of the languages is Russian

from __future__ import annotations


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


TOPICS = _lines("""
growing tomatoes
night trains
learning the violin
old bridges
baking bread
city parks
keeping bees
sailing boats
public libraries
mountain huts
street markets
wooden toys
winter swimming
paper maps
chess clubs
wild mushrooms
village schools
electric buses
pottery classes
lighthouses
morning fog
second hand books
rooftop gardens
folk songs
long walks
mechanical clocks
rain barrels
handwritten letters
corner shops
stray cats
board games
tea houses
""")

REQUESTS = ("Write a short text about {}.", "Explain what matters about {}.", "Tell a newcomer about {}.")

SENTENCES = _lines("""
Many people find that {} can change the way they spend a day.
There is a lot to like about {} once the first steps are done.
A good start with {} is to watch someone who has done it for years.
It helps to talk with neighbours who know a little about {}.
The best time for {} depends on the weather and on the mood.
Nobody needs much money to take an interest in {}.
Some of the finest memories begin with {} and a free afternoon.
What makes {} special is hard to put into a few lines.
Children often ask questions about {} that adults forgot to ask.
With a little patience {} will reward everyone who stays.
Books about {} are easy to find and pleasant to read.
In the end {} is about taking care of small things.
""")

ABOUT_A_WORD = (
    "It also brings the word {} to mind.",
    "A friend of mine would mention {} here.",
    "Think of {} as well.",
)

_KEYWORDS = """
lantern harvest compass velvet thunder orchard pilot marble whisper canyon ribbon saddle timber voyage meadow anchor
copper puzzle shelter feather kettle horizon magnet blanket cactus dragon engine falcon glacier hammer
"""
KEYWORDS = _KEYWORDS.split()

PLACEHOLDERS = ("name", "address", "date", "phone number", "city", "email")
EMPHATIC = ("REALLY", "NEVER", "ALWAYS", "TODAY")
HIGHLIGHTED = ("cost", "season", "noise")
ENDINGS = ("That is all there is to say.", "Is there anything else I can help with?", "Thank you for reading this far.")

# Code → name, and sentences about a sister in a small town by the river.
LANGUAGES = {
    "de": _lines("""
German
Meine Schwester wohnt seit vielen Jahren in einer kleinen Stadt am Fluss.
Jeden Morgen geht sie mit dem Hund durch den Wald.
Am Wochenende kochen wir zusammen und reden über alte Zeiten.
Im Winter ist es dort sehr ruhig.
"""),
    "fr": _lines("""
French
Ma sœur habite depuis longtemps dans une petite ville au bord de la rivière.
Chaque matin elle se promène dans la forêt avec son chien.
Le dimanche nous préparons un grand repas pour toute la famille.
En hiver tout est calme.
"""),
    "es": _lines("""
Spanish
Mi hermana vive desde hace muchos años en una ciudad pequeña junto al río.
Cada mañana pasea con su perro por el bosque.
Los domingos cocinamos juntos y hablamos de otros tiempos.
En invierno todo está muy tranquilo.
"""),
    "it": _lines("""
Italian
Mia sorella vive da molti anni in una piccola città vicino al fiume.
Ogni mattina passeggia nel bosco con il suo cane.
La domenica cuciniamo insieme e parliamo dei vecchi tempi.
In inverno tutto è molto tranquillo.
"""),
    "pt": _lines("""
Portuguese
Minha irmã mora há muitos anos em uma cidade pequena perto do rio.
Todas as manhãs ela passeia com o cachorro pela floresta.
Aos domingos cozinhamos juntos e falamos dos velhos tempos.
No inverno tudo fica muito calmo.
"""),
    "fi": _lines("""
Finnish
Siskoni on asunut monta vuotta pienessä kaupungissa joen rannalla.
Joka aamu hän kävelee koiran kanssa metsässä.
Sunnuntaisin laitamme yhdessä ruokaa ja puhumme vanhoista ajoista.
Talvella siellä on hyvin hiljaista.
"""),
    "ru": _lines("""
Russian
Моя сестра уже много лет живёт в маленьком городе у реки.
Каждое утро она гуляет с собакой по лесу.
По воскресеньям мы вместе готовим и говорим о старых временах.
Зимой там очень тихо.
"""),
}
