"""Who lives in the world: names, numbers and addresses that cannot belong to anybody, and who follows or bound what."""

from dataclasses import dataclass, field

from .chance import Chance

SURNAMES = [
    "王wang",
    "李li",
    "张zhang",
    "刘liu",
    "陈chen",
    "杨yang",
    "黄huang",
    "赵zhao",
    "吴wu",
    "周zhou",
    "徐xu",
    "孙sun",
    "马ma",
    "朱zhu",
    "胡hu",
    "郭guo",
    "何he",
    "林lin",
    "高gao",
    "罗luo",
    "郑zheng",
    "梁liang",
    "谢xie",
    "宋song",
    "唐tang",
    "许xu",
    "韩han",
    "邓deng",
    "冯feng",
    "曹cao",
    "彭peng",
    "曾zeng",
    "肖xiao",
    "田tian",
    "董dong",
    "潘pan",
    "袁yuan",
    "蔡cai",
    "蒋jiang",
    "余yu",
    "于yu",
    "杜du",
    "叶ye",
    "程cheng",
    "魏wei",
    "苏su",
    "吕lv",
    "丁ding",
    "任ren",
    "卢lu",
    "姚yao",
    "沈shen",
    "钟zhong",
    "姜jiang",
    "崔cui",
    "谭tan",
    "陆lu",
    "范fan",
    "汪wang",
    "廖liao",
    "石shi",
    "金jin",
    "韦wei",
    "贾jia",
    "夏xia",
    "付fu",
    "方fang",
    "邹zou",
    "熊xiong",
    "白bai",
    "孟meng",
    "秦qin",
]
GIVEN = [
    "伟wei",
    "芳fang",
    "娜na",
    "敏min",
    "静jing",
    "丽li",
    "强qiang",
    "磊lei",
    "洋yang",
    "艳yan",
    "勇yong",
    "军jun",
    "杰jie",
    "娟juan",
    "涛tao",
    "超chao",
    "明ming",
    "霞xia",
    "平ping",
    "刚gang",
    "桂gui",
    "英ying",
    "华hua",
    "玉yu",
    "兰lan",
    "红hong",
    "梅mei",
    "鑫xin",
    "波bo",
    "斌bin",
    "宇yu",
    "浩hao",
    "凯kai",
    "健jian",
    "俊jun",
    "帆fan",
    "雪xue",
    "琳lin",
    "晨chen",
    "欣xin",
    "婷ting",
    "颖ying",
    "佳jia",
    "倩qian",
    "妍yan",
    "然ran",
    "轩xuan",
    "博bo",
    "思si",
    "雨yu",
    "梓zi",
    "涵han",
    "宁ning",
    "悦yue",
    "文wen",
    "安an",
]
PLACES = (
    ("上海", "上海市", "浦东新区"),
    ("北京", "北京市", "朝阳区"),
    ("广东省", "广州市", "天河区"),
    ("广东省", "深圳市", "南山区"),
    ("浙江省", "杭州市", "西湖区"),
    ("浙江省", "宁波市", "鄞州区"),
    ("江苏省", "南京市", "玄武区"),
    ("江苏省", "苏州市", "姑苏区"),
    ("四川省", "成都市", "武侯区"),
    ("湖北省", "武汉市", "洪山区"),
    ("陕西省", "西安市", "雁塔区"),
    ("山东省", "青岛市", "市南区"),
    ("福建省", "厦门市", "思明区"),
    ("湖南省", "长沙市", "岳麓区"),
    ("辽宁省", "大连市", "中山区"),
    ("重庆", "重庆市", "渝中区"),
)
MAIL_HOSTS = ("mail.test", "youxiang.test", "post.test")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
STRANGER_IDS = 900_001  # people who follow the account and never bought; customers of the data are 12346-18287

# How the people are mixed. Shares of customers unless said otherwise.
FOLLOWS = 0.45
BOUND_OF_FOLLOWERS = 0.70  # gave their phone on our page
MAIL_OF_BOUND = 0.15  # of those, also an e-mail address
MAIL_OF_OTHERS = 0.12 / (1 - FOLLOWS)  # did not follow, but gave e-mail and phone
REFUSED_MARKETING = 0.04  # of those who filled in a form
ENGLISH = 0.08
STRANGERS = 300 / 4338  # followers who never bought, per customer with an order
STRANGER_BOUND = 0.25
UNFOLLOWED = 0.04  # of the followers, before the data ends
WROTE = 0.12  # of the followers, within the last 48 hours of the data


@dataclass(slots=True, eq=False)
class Person:
    person_id: int
    name: str
    phone: str  # 11 digits starting with 100: no Chinese mobile number does
    language: str  # zh or en
    place: tuple[str, str, str]
    open_uid: str | None  # Taobao, per app key; None for people who never bought
    openid: str | None = None  # set for everybody who follows or once followed
    unionid: str | None = None
    email: str | None = None
    binds: bool = False  # fills in the form that ties phone (and e-mail) to the account
    grants_marketing: bool = True
    baskets: list[int] = field(default_factory=list)  # tids of paid trades of the history, oldest first

    @property
    def nick(self) -> str:
        """The buyer's nick as TOP shows it: one character and two stars."""
        return self.name[0] + "**"


def make_person(person_id: int, chance: Chance) -> Person:
    """Everything about one person follows from the seed and the person's id, never from who else is there."""
    surname = chance.pick(SURNAMES, "surname", person_id)
    given = chance.pick(GIVEN, "given", person_id)
    if chance("two", person_id) < 0.6:
        second = chance.pick(GIVEN, "second", person_id)
        given = given[0] + second[0] + given[1:] + second[1:]
        characters = 2
    else:
        characters = 1
    is_customer = person_id < STRANGER_IDS
    number = (person_id * 7_919_113 + chance.bits("phone") % 100_000_000) % 100_000_000  # one-to-one below 10**8
    person = Person(
        person_id=person_id,
        name=surname[0] + given[:characters],
        phone=f"100{number:08d}",
        language="en" if chance("language", person_id) < ENGLISH else "zh",
        place=chance.pick(PLACES, "place", person_id),
        open_uid="AAH" + chance.text(LETTERS, 21, "open_uid", person_id) if is_customer else None,
    )
    follows = not is_customer or chance("follows", person_id) < FOLLOWS
    if follows:
        make_follower(person, chance)
        person.binds = chance("binds", person_id) < (BOUND_OF_FOLLOWERS if is_customer else STRANGER_BOUND)
        gives_mail = person.binds and chance("mail", person_id) < MAIL_OF_BOUND
    else:
        gives_mail = person.binds = chance("mail", person_id) < MAIL_OF_OTHERS
    if gives_mail:
        person.email = f"{surname[1:]}.{given[characters:]}{person_id}@{chance.pick(MAIL_HOSTS, 'host', person_id)}"
    person.grants_marketing = chance("grants", person_id) >= REFUSED_MARKETING
    return person


def make_follower(person: Person, chance: Chance) -> None:
    """Give a person the two WeChat ids they will have from now on."""
    person.openid = "o" + chance.text(LETTERS + "-_", 27, "openid", person.person_id)
    person.unionid = "u" + chance.text(LETTERS + "-_", 27, "unionid", person.person_id)
